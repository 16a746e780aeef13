//! Wakes loops early, here and in other processes. Polling is what makes the loops correct; this only makes them quick.
//!
//! A bell is rung by whoever makes work (accept, finish, fan-out) and heard by the loop that waits for it. In this process
//! that costs nothing. For other processes a mark is set, and `engine::tell_nodes` sends what was marked, at most once in
//! 20 ms; `engine::hear_nodes` rings the bells of its own process by what comes in. Nothing is marked while no other
//! process lives, nor where a loop of this process does the work anyway.
//!
//! Invariant: who hears of something from another process does not tell of it again.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

/// Tenants that are named in one message; with more of them, it is for all. A message has 8,000 bytes at most.
const TENANTS_MAX: usize = 64;

/// What a message to other processes can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// A process is here, or hears again.
    Hello,
    /// Jobs are ready.
    Jobs,
    /// A job waits for a time that may be earlier than all others.
    Scheduled,
    /// A schedule was made or changed.
    Schedules,
    /// Held jobs are to be looked at.
    Held,
    /// A node is gone, and its leases with it.
    Leases,
    /// Someone wants a running job stopped.
    Cancels,
    /// Jobs have ended; someone may wait for that.
    Ended,
    /// Events wait for their numbers.
    Events,
    /// Events have got their numbers; someone may wait for them.
    Log,
    /// A replay was made or cancelled.
    Replays,
    /// An endpoint was changed.
    Endpoints,
    /// Deliveries are due.
    Deliveries,
    /// A lane is free, or the number of nodes changed.
    Lanes,
}

impl Word {
    const ALL: [(&'static str, Self); 14] = [
        ("hello", Self::Hello),
        ("jobs", Self::Jobs),
        ("scheduled", Self::Scheduled),
        ("schedules", Self::Schedules),
        ("held", Self::Held),
        ("leases", Self::Leases),
        ("cancels", Self::Cancels),
        ("ended", Self::Ended),
        ("events", Self::Events),
        ("log", Self::Log),
        ("replays", Self::Replays),
        ("endpoints", Self::Endpoints),
        ("deliveries", Self::Deliveries),
        ("lanes", Self::Lanes),
    ];

    fn text(self) -> &'static str {
        Self::ALL.iter().find(|(_, word)| *word == self).map_or("", |(text, _)| text)
    }
}

/// What a process tells the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calls {
    /// What it tells.
    pub words: BTreeSet<Word>,
    /// In which lanes deliveries are due, a bit for each.
    pub lanes: u64,
    /// Whose log has grown; `None`: anybody's.
    pub tenants: Option<BTreeSet<Uuid>>,
}

impl Calls {
    /// As it is sent, after the sender's id: words, some with what they are about behind a colon.
    pub fn to_text(&self, sender: Uuid) -> String {
        let mut text = sender.simple().to_string();
        for word in &self.words {
            let _ = write!(text, " {}", word.text());
            match (word, &self.tenants) {
                (Word::Deliveries, _) => drop(write!(text, ":{:x}", self.lanes)),
                (Word::Log, Some(tenants)) => {
                    let ids: Vec<_> = tenants.iter().map(|id| id.simple().to_string()).collect();
                    let _ = write!(text, ":{}", ids.join(","));
                }
                _ => {}
            }
        }
        text
    }

    /// From what was sent; the sender is `None` where it was no process of ours but a function in the database. Words
    /// that a newer version may send are passed over.
    pub fn parse(text: &str) -> (Option<Uuid>, Self) {
        let mut words = text.split(' ');
        let sender = words.next().and_then(|first| Uuid::parse_str(first).ok());
        let mut calls = Self::default();
        for part in words {
            let (name, about) = part.split_once(':').unwrap_or((part, ""));
            let Some((_, word)) = Word::ALL.iter().find(|(text, _)| *text == name) else { continue };
            calls.words.insert(*word);
            match word {
                Word::Deliveries => calls.lanes = u64::from_str_radix(about, 16).unwrap_or(u64::MAX),
                Word::Log if !about.is_empty() => {
                    calls.tenants = about.split(',').map(|id| Uuid::parse_str(id).ok()).collect();
                }
                _ => {}
            }
        }
        (sender, calls)
    }
}

/// What is to be told to other processes.
#[derive(Debug, Default)]
pub struct Elsewhere {
    calls: Mutex<Calls>,
    marked: Notify,
    /// Is there another process?
    company: AtomicBool,
    /// The loops of this process end: what calls for them calls for those of others.
    leaving: AtomicBool,
}

impl Elsewhere {
    fn mark(&self, word: Word, about: impl FnOnce(&mut Calls)) {
        if !self.company.load(Ordering::Relaxed) {
            return;
        }
        let mut calls = self.lock();
        about(&mut calls);
        calls.words.insert(word);
        drop(calls);
        self.marked.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whether there is another process.
    pub fn set_company(&self, company: bool) {
        self.company.store(company, Ordering::Relaxed);
    }

    /// Completes when something was marked.
    pub async fn marked(&self) {
        self.marked.notified().await;
    }

    /// What was marked since the last time; `None`: nothing.
    pub fn take(&self) -> Option<Calls> {
        let calls = std::mem::take(&mut *self.lock());
        (!calls.words.is_empty()).then_some(calls)
    }
}

/// A bell. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bell {
    word: Word,
    here: Arc<Notify>,
    /// Another loop of this process that hears it too.
    also: Option<Arc<Notify>>,
    elsewhere: Arc<Elsewhere>,
    /// A loop of this process answers it, and others need not.
    enough_here: bool,
}

impl Bell {
    /// Rings here, and elsewhere unless this process does what it calls for.
    pub fn notify_one(&self) {
        self.notify_here();
        if !self.enough_here || self.elsewhere.leaving.load(Ordering::Relaxed) {
            self.notify_elsewhere();
        }
    }

    /// Rings in this process only.
    pub fn notify_here(&self) {
        self.here.notify_one();
        if let Some(also) = &self.also {
            also.notify_one();
        }
    }

    /// Rings in the other processes only.
    pub fn notify_elsewhere(&self) {
        self.elsewhere.mark(self.word, |calls| calls.lanes = u64::MAX);
    }

    /// Completes when it was rung since the last time.
    pub async fn notified(&self) {
        self.here.notified().await;
    }
}

/// One bell for each loop. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Wakeups {
    /// Jobs are ready.
    pub jobs: Bell,
    /// A worker outside waits for jobs; it hears of all jobs that are ready as well.
    pub lenders: Bell,
    /// Held jobs are to be looked at.
    pub held: Bell,
    /// A job waits for a time that may be earlier than all others.
    pub scheduled: Bell,
    /// A schedule was made or changed.
    pub schedules: Bell,
    /// A node is gone, and its leases with it.
    pub leases: Bell,
    /// Someone wants a running job stopped.
    pub cancels: Bell,
    /// Jobs have ended that someone in another process may wait for.
    pub ended: Bell,
    /// Events wait for their numbers.
    pub events: Bell,
    /// A replay was made or cancelled.
    pub replays: Bell,
    /// An endpoint was changed.
    pub endpoints: Bell,
    /// Deliveries are due.
    pub deliveries: Bell,
    /// A lane is free, or the number of nodes changed.
    pub lanes: Bell,
    /// For other processes.
    pub elsewhere: Arc<Elsewhere>,
}

/// The loops of this process that leave nothing to do for those of others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Here {
    /// Gives events their numbers, and feeds replays.
    pub dispatcher: bool,
    /// Places held jobs, makes due ones ready and those of schedules, and ends lost leases.
    pub scheduler: bool,
}

impl Wakeups {
    /// The bells of a process with these loops.
    pub fn new(here: Here) -> Self {
        let elsewhere = Arc::new(Elsewhere::default());
        let bell = |word, enough_here| Bell {
            word,
            here: Arc::default(),
            also: None,
            elsewhere: elsewhere.clone(),
            enough_here,
        };
        let lenders = bell(Word::Jobs, true);
        Self {
            jobs: Bell { also: Some(lenders.here.clone()), ..bell(Word::Jobs, false) },
            lenders,
            held: bell(Word::Held, here.scheduler),
            scheduled: bell(Word::Scheduled, here.scheduler),
            schedules: bell(Word::Schedules, here.scheduler),
            leases: bell(Word::Leases, here.scheduler),
            cancels: bell(Word::Cancels, false),
            ended: bell(Word::Ended, false),
            events: bell(Word::Events, here.dispatcher),
            replays: bell(Word::Replays, here.dispatcher),
            endpoints: bell(Word::Endpoints, false),
            deliveries: bell(Word::Deliveries, false),
            lanes: bell(Word::Lanes, false),
            elsewhere,
        }
    }

    /// Deliveries are due in these lanes of other processes, a bit for each.
    pub fn deliveries_elsewhere(&self, lanes: u64) {
        if lanes != 0 {
            self.elsewhere.mark(Word::Deliveries, |calls| calls.lanes |= lanes);
        }
    }

    /// These tenants' logs have grown; each may come many times.
    pub fn log_elsewhere(&self, tenants: impl Iterator<Item = Uuid>) {
        self.elsewhere.mark(Word::Log, |calls| {
            if calls.words.contains(&Word::Log) && calls.tenants.is_none() {
                return;
            }
            let named = calls.tenants.get_or_insert_default();
            named.extend(tenants);
            if named.len() > TENANTS_MAX {
                calls.tenants = None;
            }
        });
    }

    /// Rings here what another process told. `lanes`: those of this process.
    pub fn hear(&self, calls: &Calls, lanes: u64) {
        for word in &calls.words {
            match word {
                Word::Jobs => self.jobs.notify_here(),
                Word::Scheduled => self.scheduled.notify_here(),
                Word::Schedules => self.schedules.notify_here(),
                Word::Held => self.held.notify_here(),
                Word::Leases => self.leases.notify_here(),
                Word::Cancels => self.cancels.notify_here(),
                Word::Ended => self.ended.notify_here(),
                Word::Events => self.events.notify_here(),
                Word::Replays => self.replays.notify_here(),
                Word::Endpoints => self.endpoints.notify_here(),
                Word::Deliveries if calls.lanes & lanes != 0 => self.deliveries.notify_here(),
                Word::Hello | Word::Lanes => self.lanes.notify_here(),
                Word::Deliveries | Word::Log => {}
            }
        }
    }

    /// The loops of this process end: the others look for what it leaves, and do all that comes of its last work.
    pub fn leave(&self) {
        self.elsewhere.leaving.store(true, Ordering::Relaxed);
        for bell in [&self.jobs, &self.held, &self.scheduled, &self.schedules, &self.leases] {
            bell.notify_elsewhere();
        }
        for bell in [&self.events, &self.replays, &self.lanes] {
            bell.notify_elsewhere();
        }
    }

    /// Rings all bells of this process: something may have been told that was not heard.
    pub fn all_here(&self) {
        for bell in [&self.jobs, &self.held, &self.scheduled, &self.schedules, &self.leases] {
            bell.notify_here();
        }
        for bell in [&self.cancels, &self.ended] {
            bell.notify_here();
        }
        for bell in [&self.events, &self.replays, &self.endpoints, &self.deliveries, &self.lanes] {
            bell.notify_here();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_company() -> Wakeups {
        let wakeups = Wakeups::new(Here { dispatcher: true, scheduler: false });
        wakeups.elsewhere.set_company(true);
        wakeups
    }

    #[test]
    fn what_is_told_is_understood() {
        let (wakeups, sender) = (in_company(), Uuid::now_v7());
        wakeups.jobs.notify_one();
        wakeups.jobs.notify_one();
        wakeups.events.notify_one();
        wakeups.scheduled.notify_one();
        wakeups.deliveries_elsewhere(0b101);
        wakeups.log_elsewhere([sender, sender].into_iter());

        let calls = wakeups.elsewhere.take().expect("calls");
        assert_eq!(
            calls.words,
            [Word::Jobs, Word::Scheduled, Word::Log, Word::Deliveries].into(),
            "events are numbered here"
        );
        let text = calls.to_text(sender);
        assert_eq!(Calls::parse(&text), (Some(sender), calls), "{text}");
        assert_eq!(wakeups.elsewhere.take(), None);
    }

    #[test]
    fn a_function_in_the_database_and_a_newer_version_are_understood() {
        let (sender, calls) = Calls::parse("sql events");
        assert_eq!((sender, calls.words), (None, [Word::Events].into()));
        assert_eq!(Calls::parse("sql warp:9 jobs").1.words, [Word::Jobs].into());
        assert_eq!(Calls::parse("").1, Calls::default());
        assert_eq!(Calls::parse("x log").1.tenants, None);
        assert_eq!(Calls::parse("x deliveries").1.lanes, u64::MAX);
    }

    #[test]
    fn a_message_stays_small_whatever_was_marked() {
        let wakeups = in_company();
        wakeups.log_elsewhere((0..TENANTS_MAX).map(|_| Uuid::now_v7()));
        wakeups.lanes.notify_one();
        let calls = wakeups.elsewhere.take().expect("calls");
        assert!(calls.to_text(Uuid::nil()).len() < 4000);
        wakeups.log_elsewhere((0..TENANTS_MAX).map(|_| Uuid::now_v7()));
        wakeups.log_elsewhere((0..2).map(|_| Uuid::now_v7()));
        wakeups.log_elsewhere((0..2).map(|_| Uuid::now_v7()));
        assert_eq!(wakeups.elsewhere.take().expect("calls").tenants, None, "too many: for all");
    }

    #[test]
    fn alone_nothing_is_marked_and_what_was_heard_is_not_told_again() {
        let wakeups = in_company();
        wakeups.hear(&Calls::parse("x jobs lanes").1, u64::MAX);
        assert_eq!(wakeups.elsewhere.take(), None);
        wakeups.elsewhere.set_company(false);
        wakeups.jobs.notify_one();
        assert_eq!(wakeups.elsewhere.take(), None);
    }
}
