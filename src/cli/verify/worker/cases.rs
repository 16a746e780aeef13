//! The hard cases: what is played, what a good worker does, and what to look at when it does not.
//!
//! Called by `verify worker`, one after another, with the same worker. After each one the worker must still do an ordinary job.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::stage::{Hand, Stage, Trick};
use crate::ids::JobId;

/// Longer than anyone waits.
const FOR_EVER_S: f64 = 3600.0;
/// A worker may ask so often for jobs of a service that is away.
const POLLS_MAX_PER_S: f64 = 20.0;
const LOOK_EVERY: Duration = Duration::from_millis(50);
const AWAY_FOR: Duration = Duration::from_secs(3);
/// The same late report may come so often.
const LATE_REPORTS_MAX: usize = 3;

/// A case.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    /// Its name.
    pub(super) name: &'static str,
    /// What to look at.
    pub(super) hint: &'static str,
    plot: Plot,
}

#[derive(Debug, Clone, Copy)]
enum Plot {
    Plain,
    LostAnswer,
    Slow,
    Cancelled,
    LostLease,
    Outage,
}

/// All of them, in the order in which they are played.
pub(super) const CASES: [Case; 6] = [
    Case {
        name: "plain",
        hint: "Poll POST /v1/leases, do the job, report succeeded under its lease.",
        plot: Plot::Plain,
    },
    Case {
        name: "lost-answer",
        hint: "A report without an answer must be repeated until there is one; the same report again is answered the same.",
        plot: Plot::LostAnswer,
    },
    Case {
        name: "slow",
        hint: "Extend the lease (POST /v1/leases/extend) from another thread or task, at a third of lease_s.",
        plot: Plot::Slow,
    },
    Case {
        name: "cancelled",
        hint: "When an extension says cancelled, stop the job; what is reported then gets 409, which is no fault.",
        plot: Plot::Cancelled,
    },
    Case {
        name: "lost-lease",
        hint: "When an extension says 409, stop the job; it was given to another, or comes again under another lease.",
        plot: Plot::LostLease,
    },
    Case {
        name: "outage",
        hint: "When the service is away (503, no connection), wait and ask again, longer each time; do not end.",
        plot: Plot::Outage,
    },
];

/// What a play is made with.
pub(super) struct Play<'a> {
    /// The service.
    pub(super) stage: &'a Stage,
    /// Fields of each input.
    pub(super) input: &'a Map<String, Value>,
    /// How long to wait for what has no reason to take long.
    pub(super) patience: Duration,
}

type Verdict = Result<String, String>;

impl Play<'_> {
    /// Plays a case: what went well, or what did not.
    pub(super) async fn run(&self, case: &Case) -> Verdict {
        match case.plot {
            Plot::Plain => self.plain().await,
            Plot::LostAnswer => self.lost_answer().await,
            Plot::Slow => self.slow().await,
            Plot::Cancelled => self.cancelled().await,
            Plot::LostLease => self.lost_lease().await,
            Plot::Outage => self.outage().await,
        }
    }

    fn offer(&self, job: JobId, attempt: u32, sleep_s: f64, trick: Trick) {
        let mut input = self.input.clone();
        input.insert("sleep_s".to_owned(), json!(sleep_s));
        self.stage.offer(job, attempt, input, trick);
    }

    /// Offers a job, and waits until the worker has taken it.
    async fn hand(&self, job: JobId, attempt: u32, sleep_s: f64, trick: Trick) -> Result<Hand, String> {
        self.offer(job, attempt, sleep_s, trick);
        let taken = self.stage.until(job, self.patience, |hand| Some(hand.clone()));
        taken.await.ok_or_else(|| {
            self.stage.withdraw();
            format!("it did not ask for a job within {:.0} s", self.patience.as_secs_f64())
        })
    }

    /// An ordinary job: proof that the worker is well.
    async fn ordinary(&self) -> Result<Duration, String> {
        let job = JobId::fresh();
        let began = Instant::now();
        self.hand(job, 1, 0.0, Trick::None).await?;
        self.succeeded(job, self.patience).await?;
        Ok(began.elapsed())
    }

    /// Waits until the job's latest hand-out was reported on, well.
    async fn succeeded(&self, job: JobId, within: Duration) -> Result<(), String> {
        let reported = self.stage.until(job, within, |hand| {
            hand.reports
                .iter()
                .find(|(_, outcome, _)| outcome != "progress")
                .map(|(_, outcome, status)| (outcome.clone(), *status))
        });
        match reported.await {
            Some((outcome, 200)) if outcome == "succeeded" => Ok(()),
            Some((outcome, status)) => {
                Err(format!("it reported {outcome:?}, which got {status}, instead of succeeded"))
            }
            None => Err(format!("it made no report within {:.0} s", within.as_secs_f64())),
        }
    }

    async fn and_goes_on(&self, told: &str) -> Verdict {
        match self.ordinary().await {
            Ok(took) => Ok(format!("{told}, and did another job ({:.1} s)", took.as_secs_f64())),
            Err(why) => Err(format!("{told}, but did no other job afterwards: {why}")),
        }
    }

    async fn plain(&self) -> Verdict {
        let took = self.ordinary().await?;
        Ok(format!("taken, done and reported in {:.1} s", took.as_secs_f64()))
    }

    async fn lost_answer(&self) -> Verdict {
        let job = JobId::fresh();
        self.hand(job, 1, 0.0, Trick::LoseAnswer).await?;
        self.succeeded(job, self.patience).await?;
        let again = self
            .stage
            .until(job, self.patience, |hand| (hand.reports.len() > 1).then(|| hand.reports[1].clone()));
        match again.await {
            Some((_, outcome, 200)) => self.and_goes_on(&format!("reported {outcome} again")).await,
            Some((_, outcome, status)) => Err(format!("its next report was {outcome}, which got {status}")),
            None => Err("its report was not answered, and it did not repeat it".to_owned()),
        }
    }

    async fn slow(&self) -> Verdict {
        let job = JobId::fresh();
        // How long a lease is to be is known when it is taken, so an ordinary job goes first.
        let probe = JobId::fresh();
        let lease_s = self.hand(probe, 1, 0.0, Trick::None).await?.lease_s;
        self.succeeded(probe, self.patience).await?;
        let sleep_s = lease_s * 1.5;
        self.hand(job, 1, sleep_s, Trick::None).await?;
        let lapsed = |hand: &Hand| {
            let ended = hand.reports.iter().any(|(_, outcome, _)| outcome != "progress");
            (ended || Instant::now() >= hand.until).then_some((ended, hand.extended.len()))
        };
        let within = Duration::from_secs_f64(sleep_s) + self.patience;
        match self.stage.until(job, within, lapsed).await {
            Some((true, 0)) => Err(format!("it did not take input.sleep_s ({sleep_s:.1} s) over the job")),
            Some((true, extended)) => {
                self.succeeded(job, self.patience).await?;
                Ok(format!("kept its lease of {lease_s:.0} s for {sleep_s:.1} s by {extended} extensions"))
            }
            Some((false, extended)) => Err(format!(
                "its lease of {lease_s:.0} s ran out while it worked, after {extended} extensions"
            )),
            None => Err("it never finished".to_owned()),
        }
    }

    /// Waits until the worker was told, then until it let go of the job.
    async fn lets_go(&self, job: JobId, hand: &Hand) -> Result<(), String> {
        let lease_s = hand.lease_s;
        let told = self
            .stage
            .until(job, Duration::from_secs_f64(lease_s), |hand| hand.extended.first().copied())
            .await
            .ok_or("it did not extend its lease, so it could not be told")?;
        // Reported, or not extended for a while. The job itself would take an hour.
        let quiet = Duration::from_secs_f64((lease_s * 0.7).max(1.0));
        let lease = hand.lease.clone();
        let let_go = self.stage.until(job, self.patience.max(quiet * 2), |_| {
            let hand = self.stage.hand(&lease)?;
            let reported = hand.reports.iter().any(|(at, outcome, _)| *at >= told && outcome != "progress");
            let silent = hand.extended.last().is_some_and(|last| last.elapsed() > quiet);
            (reported || silent).then_some(())
        });
        let_go.await.ok_or_else(|| "it went on extending the lease after it was told to stop".to_owned())
    }

    async fn cancelled(&self) -> Verdict {
        let job = JobId::fresh();
        let hand = self.hand(job, 1, FOR_EVER_S, Trick::Cancel).await?;
        self.lets_go(job, &hand).await?;
        self.and_goes_on("stopped when the job was cancelled").await
    }

    async fn lost_lease(&self) -> Verdict {
        let job = JobId::fresh();
        let old = self.hand(job, 1, FOR_EVER_S, Trick::Lose).await?;
        self.lets_go(job, &old).await?;
        // The same job again, as the next try: the report must come under the new lease.
        self.offer(job, 2, 0.0, Trick::None);
        let new = self.stage.until(job, self.patience, |hand| (hand.lease != old.lease).then_some(()));
        if new.await.is_none() {
            self.stage.withdraw();
            return Err("it did not take the job again under a new lease".to_owned());
        }
        self.succeeded(job, self.patience)
            .await
            .map_err(|why| format!("of the job that came again, {why}"))?;
        let late = self.stage.hand(&old.lease).map_or(0, |hand| hand.reports.len());
        if late > LATE_REPORTS_MAX {
            return Err(format!("it reported {late} times under the lost lease; 409 is the last word"));
        }
        self.and_goes_on("stopped when the lease was lost, did the job again under the new one").await
    }

    async fn outage(&self) -> Verdict {
        self.stage.set_away(true);
        // A worker that is still at something else has not met the outage yet.
        let away = Instant::now();
        while self.stage.polls_since(away) == 0 && away.elapsed() < self.patience {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        if self.stage.polls_since(away) == 0 {
            self.stage.set_away(false);
            return Err(format!("it asked for no job within {:.0} s", self.patience.as_secs_f64()));
        }
        let began = Instant::now();
        tokio::time::sleep(AWAY_FOR).await;
        // It may have been at work until now: the outage lasts until it has met it.
        while self.stage.polls_since(began) == 0 && began.elapsed() < self.patience {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let (polls, lasted) = (self.stage.polls_since(began), began.elapsed().as_secs_f64());
        self.stage.set_away(false);
        if polls as f64 > POLLS_MAX_PER_S * lasted {
            return Err(format!("it asked {polls} times within {lasted:.0} s while the service was away"));
        }
        self.and_goes_on(&format!("asked {polls} times while the service was away")).await
    }
}
