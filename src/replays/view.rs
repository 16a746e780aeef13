//! [pure] A replay as the API shows it, and the answer of a dry run.
//!
//! What the request calls `status` stands here as `deliveries`: `status` tells where the replay stands.

use serde::Serialize;

use super::{Ask, Matched, Replay};
use crate::clock::{Timestamp, millis};
use crate::ids::{EndpointId, ReplayId};
use crate::topics::Pattern;

#[derive(Debug, Serialize)]
struct AskView<'a> {
    endpoint_id: Option<EndpointId>,
    event_types: Option<Vec<&'a str>>,
    deliveries: &'static str,
    #[serde(with = "millis")]
    since: Timestamp,
    #[serde(with = "millis")]
    until: Timestamp,
    per_s: f64,
}

impl<'a> AskView<'a> {
    fn new(ask: &'a Ask) -> Self {
        Self {
            endpoint_id: ask.endpoint,
            event_types: ask.event_types.as_ref().map(|list| list.iter().map(Pattern::as_str).collect()),
            deliveries: ask.what.as_str(),
            since: ask.since,
            until: ask.until,
            per_s: ask.per_s,
        }
    }
}

#[derive(Debug, Serialize)]
struct ReplayView<'a> {
    id: ReplayId,
    status: &'static str,
    matched: i64,
    matched_exact: bool,
    replayed: i64,
    #[serde(flatten)]
    ask: AskView<'a>,
    error: Option<&'a str>,
    #[serde(with = "millis")]
    created_at: Timestamp,
    #[serde(with = "millis")]
    updated_at: Timestamp,
    #[serde(with = "millis")]
    finished_at: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
struct DryRunView<'a> {
    dry_run: bool,
    matched: i64,
    matched_exact: bool,
    #[serde(flatten)]
    ask: AskView<'a>,
}

/// The JSON of a replay.
pub fn replay(replay: &Replay) -> String {
    let view = ReplayView {
        id: replay.id,
        status: replay.status.as_str(),
        matched: replay.matched.count,
        matched_exact: replay.matched.exact,
        replayed: replay.replayed,
        ask: AskView::new(&replay.ask),
        error: replay.error.as_deref(),
        created_at: replay.id.created_at(),
        updated_at: replay.updated_at,
        finished_at: replay.finished_at,
    };
    // Strings and numbers can always be written.
    serde_json::to_string(&view).unwrap_or_default()
}

/// The JSON that answers a dry run.
pub fn dry_run(ask: &Ask, matched: Matched) -> String {
    let view = DryRunView {
        dry_run: true,
        matched: matched.count,
        matched_exact: matched.exact,
        ask: AskView::new(ask),
    };
    serde_json::to_string(&view).unwrap_or_default()
}
