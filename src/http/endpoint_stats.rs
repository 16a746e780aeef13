//! How an endpoint does: counters by the minute, the backlog, its health.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;

use super::endpoints::find;
use super::extract::{self, Query};
use super::problem::ApiError;
use crate::clock::{self, Timestamp, millis};
use crate::endpoints::health_store::{self, BACKLOG_COUNTED_MAX, Stats};
use crate::ids::EndpointId;
use crate::shared::Shared;
use crate::tenants::Scope;

const HOURS_DEFAULT: i32 = 24;
/// A month; the counters are kept no longer.
const HOURS_MAX: i32 = 720;

#[derive(Serialize)]
struct StatsView {
    endpoint_id: EndpointId,
    hours: i32,
    succeeded: i64,
    failed: i64,
    /// Of the attempts; `None`: there were none.
    success_rate: Option<f64>,
    latency_ms: LatencyView,
    backlog: i64,
    backlog_is_minimum: bool,
    #[serde(with = "millis")]
    oldest_due_at: Option<Timestamp>,
    #[serde(with = "millis")]
    failing_since: Option<Timestamp>,
    breaker: BreakerView,
}

#[derive(Serialize)]
struct LatencyView {
    p50: Option<u64>,
    p95: Option<u64>,
    p99: Option<u64>,
}

#[derive(Serialize)]
struct BreakerView {
    status: &'static str,
    #[serde(with = "millis")]
    open_until: Option<Timestamp>,
}

/// `GET /v1/endpoints/{id}/stats`.
pub async fn stats(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EndpointsRead)?;
    let id: EndpointId = extract::id(&request)?;
    let mut query = Query::of(&request);
    let what = format!("a whole number from 1 to {HOURS_MAX}");
    let hours = query.parsed::<i32>("hours", &what).unwrap_or(HOURS_DEFAULT);
    if !(1..=HOURS_MAX).contains(&hours) {
        query.fault("hours", format!("must be {what}"));
    }
    query.finish()?;
    find(&shared, caller.tenant, id).await?;
    let for_task = shared.clone();
    let read = async move { health_store::stats(&for_task.db, caller.tenant, id, hours).await };
    let stats = shared.tasks.run(read).await??;
    Ok(HttpResponse::Ok().json(view(id, hours, &stats, clock::now())))
}

fn view(endpoint_id: EndpointId, hours: i32, stats: &Stats, now: Timestamp) -> StatsView {
    let attempts = stats.succeeded + stats.failed;
    StatsView {
        endpoint_id,
        hours,
        succeeded: stats.succeeded,
        failed: stats.failed,
        success_rate: (attempts > 0).then(|| stats.succeeded as f64 / attempts as f64),
        latency_ms: LatencyView {
            p50: percentile(&stats.latency, 0.50),
            p95: percentile(&stats.latency, 0.95),
            p99: percentile(&stats.latency, 0.99),
        },
        backlog: stats.backlog.min(BACKLOG_COUNTED_MAX),
        backlog_is_minimum: stats.backlog > BACKLOG_COUNTED_MAX,
        oldest_due_at: stats.oldest_due_at,
        failing_since: stats.failing_since,
        breaker: BreakerView {
            status: match stats.open_until {
                None => "closed",
                Some(until) if until > now => "open",
                Some(_) => "half_open",
            },
            open_until: stats.open_until,
        },
    }
}

/// The upper border of the class in which the share of all is reached.
fn percentile(classes: &[i64], share: f64) -> Option<u64> {
    let total: i64 = classes.iter().sum();
    let wanted = (total as f64 * share).ceil() as i64;
    let mut seen = 0;
    let place = classes.iter().position(|count| {
        seen += count;
        total > 0 && seen >= wanted
    })?;
    Some(1 << place.min(62))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_border_of_its_class() {
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(percentile(&[0, 0], 0.5), None);
        assert_eq!(percentile(&[10, 0, 0], 0.99), Some(1));
        assert_eq!(percentile(&[50, 49, 0, 1], 0.5), Some(1));
        assert_eq!(percentile(&[50, 49, 0, 1], 0.95), Some(2));
        assert_eq!(percentile(&[50, 49, 0, 1], 1.0), Some(8));
    }

    #[test]
    fn a_class_holds_the_durations_up_to_its_border() {
        for (ms, border) in [(0, 1), (1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (1000, 1024), (1 << 40, 1 << 17)]
        {
            assert_eq!(1_u64 << health_store::latency_class(ms), border, "{ms}");
        }
    }
}
