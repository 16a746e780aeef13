//! What the dispatcher learns of endpoints: counters by the minute, since when one fails, and whom to disable.
//!
//! Kept in memory by the owner of the lane and written every few seconds, in batches. An endpoint that said 410, or whose
//! every attempt failed for five days, is disabled, and an event tells of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DurationRound, TimeDelta};

use crate::clock::{self, Timestamp};
use crate::deliveries::Due;
use crate::deliveries::end_store::{self, EndReason};
use crate::deliveries::scheduling::LandingAnswer;
use crate::endpoints::health_store::{self, Health, LATENCY_CLASSES, MinuteCounts, latency_class};
use crate::endpoints::{change, store as endpoint_store};
use crate::events::NewEvent;
use crate::events::publish::Publish;
use crate::ids::{DeliveryId, EndpointId, EventId, TenantId};
use crate::shared::Shared;

use super::transmit::Landed;

/// How often what was learned is written.
pub(super) const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// After failing for so long an endpoint is disabled.
const FAILS_FOR: TimeDelta = TimeDelta::days(5);
/// A success is worth telling after so many failures in a row; a receiver that stumbles now and then makes no noise.
const RECOVERS_FROM: i32 = 3;

/// A receiver that fails.
#[derive(Debug, Clone, Copy)]
struct Failing {
    since: Timestamp,
    failures: i32,
    /// Those of them that were no news of endpoints.
    of_note: i32,
}

type Key = (TenantId, EndpointId);

/// What is known, and what of it is not written yet.
#[derive(Debug, Default)]
pub(super) struct HealthBook {
    minutes: HashMap<(Key, Timestamp), MinuteCounts>,
    failing: HashMap<Key, Failing>,
    changed: HashMap<Key, Health>,
    to_disable: Vec<(Key, &'static str)>,
    recovered: Vec<Key>,
    exhausted: Vec<(Key, DeliveryId)>,
}

impl HealthBook {
    /// Takes over what an earlier owner wrote.
    pub(super) fn load(&mut self, known: &[Health]) {
        for health in known {
            if let Some(since) = health.failing_since {
                let known = Failing { since, failures: health.failures, of_note: health.failures };
                self.failing.entry((health.tenant, health.endpoint)).or_insert(known);
            }
        }
    }

    /// Notes a try. `open_for`: the breaker is open, for so long; zero: one is let through to try.
    pub(super) fn note(
        &mut self,
        due: &Due,
        endpoint: EndpointId,
        landed: &Landed,
        open_for: Option<Duration>,
    ) {
        if landed.landing.answer == LandingAnswer::NotCalled {
            return;
        }
        let (key, now) = ((due.tenant, endpoint), clock::now());
        let well = landed.landing.answer == LandingAnswer::Well;
        if landed.exhausted && !landed.is_news {
            self.exhausted.push((key, due.id));
        }
        self.count(key, now, well, landed.duration);
        if well {
            if let Some(failing) = self.failing.remove(&key) {
                self.set(key, None, None);
                if failing.of_note >= RECOVERS_FROM {
                    self.recovered.push(key);
                }
            }
            return;
        }
        let failing = self.failing.entry(key).or_insert(Failing { since: now, failures: 0, of_note: 0 });
        failing.failures = failing.failures.saturating_add(1);
        failing.of_note = failing.of_note.saturating_add(i32::from(!landed.is_news));
        let failing = *failing;
        self.set(key, Some(failing), open_for.map(|wait| now + wait));
        if landed.gone {
            self.to_disable.push((key, "the receiver answered 410 Gone"));
        } else if now - failing.since > FAILS_FOR {
            self.to_disable.push((key, "every attempt failed for five days"));
        }
    }

    fn count(&mut self, key: Key, now: Timestamp, well: bool, duration: Duration) {
        let minute = now.duration_trunc(TimeDelta::minutes(1)).unwrap_or(now);
        let counts = self.minutes.entry((key, minute)).or_insert_with(|| MinuteCounts {
            tenant: key.0,
            endpoint: key.1,
            minute,
            succeeded: 0,
            failed: 0,
            latency: [0; LATENCY_CLASSES],
        });
        if well {
            counts.succeeded += 1;
        } else {
            counts.failed += 1;
        }
        counts.latency[latency_class(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))] += 1;
    }

    fn set(&mut self, key: Key, failing: Option<Failing>, open_until: Option<Timestamp>) {
        let (tenant, endpoint) = key;
        let failing_since = failing.map(|failing| failing.since);
        let failures = failing.map_or(0, |failing| failing.failures);
        self.changed.insert(key, Health { tenant, endpoint, failing_since, open_until, failures });
    }

    /// What is to be written; `None`: nothing.
    pub(super) fn take(&mut self) -> Option<Learned> {
        let learned = Learned {
            minutes: self.minutes.drain().map(|(_, counts)| counts).collect(),
            changed: self.changed.drain().map(|(_, health)| health).collect(),
            to_disable: std::mem::take(&mut self.to_disable),
            recovered: std::mem::take(&mut self.recovered),
            exhausted: std::mem::take(&mut self.exhausted),
        };
        (!learned.minutes.is_empty() || !learned.changed.is_empty()).then_some(learned)
    }

    /// Is somebody to be disabled, or is there news that others wait for?
    pub(super) fn is_urgent(&self) -> bool {
        !(self.to_disable.is_empty() && self.exhausted.is_empty() && self.recovered.is_empty())
    }
}

/// What was learned since the last time.
#[derive(Debug)]
pub(super) struct Learned {
    minutes: Vec<MinuteCounts>,
    changed: Vec<Health>,
    to_disable: Vec<(Key, &'static str)>,
    recovered: Vec<Key>,
    exhausted: Vec<(Key, DeliveryId)>,
}

impl Learned {
    /// Writes it. What cannot be written is lost, and told: it is of statistics only, and the next failure brings a
    /// disabling again.
    pub(super) async fn write(self, shared: Arc<Shared>) {
        if let Err(error) = health_store::add_minutes(&shared.db, &self.minutes).await {
            tracing::warn!(%error, "cannot write the counters of endpoints");
        }
        if let Err(error) = health_store::set_health(&shared.db, &self.changed).await {
            tracing::warn!(%error, "cannot write the health of endpoints");
        }
        for (key, reason) in self.to_disable {
            if let Err(error) = disable(&shared, key, reason).await {
                tracing::warn!(endpoint.id = %key.1, error, "endpoint {} cannot be disabled; its next failure brings it up again", key.1);
            }
        }
        for ((tenant, endpoint), delivery) in self.exhausted {
            let data = serde_json::json!({ "endpoint_id": endpoint, "delivery_id": delivery });
            tell(&shared, tenant, "delivery.exhausted", &data).await;
        }
        for (tenant, endpoint) in self.recovered {
            tell(&shared, tenant, "endpoint.recovered", &serde_json::json!({ "endpoint_id": endpoint }))
                .await;
        }
    }
}

async fn disable(shared: &Shared, (tenant, id): Key, reason: &str) -> Result<(), String> {
    let disabled = change::disable(&shared.db, &shared.sealer, (tenant, id), clock::now(), reason).await;
    if !disabled.map_err(|error| error.to_string())? {
        return Ok(());
    }
    tracing::info!(endpoint.id = %id, reason, "endpoint {id} is disabled: {reason}");
    shared.wakeups.endpoints.notify_one();
    let url = endpoint_store::get(&shared.db, &shared.sealer, tenant, id)
        .await
        .map(|endpoint| endpoint.settings.url)
        .ok();
    tell(
        shared,
        tenant,
        "endpoint.disabled",
        &serde_json::json!({ "endpoint_id": id, "url": url, "reason": reason }),
    )
    .await;
    end_store::fail_all_pending(&shared.db, (tenant, id), EndReason::DISABLED)
        .await
        .map_err(|error| error.to_string())?;
    Ok(())
}

async fn tell(shared: &Shared, tenant: TenantId, event_type: &str, data: &serde_json::Value) {
    let event = NewEvent {
        tenant,
        id: EventId::fresh(),
        event_type: event_type.to_owned(),
        data: data.to_string(),
        metadata: None,
        ordering_key: None,
        traceparent: None,
        callback: None,
    };
    match shared.publish.submit(Publish { event, dedup_key: None, key: None }).await {
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, event_type, "an event of our own cannot be published"),
    }
}
