//! Events as they stand: one, and the log from a cursor on, with a long poll.
//!
//! A page looks at so many places of the log at most, so a rare topic costs a bounded look and an advanced cursor, never
//! a walk over everything.

use std::collections::HashMap;
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use tokio::time::Instant;

use super::extract::{self, Query};
use super::problem::ApiError;
use crate::db::{Db, StoreError};
use crate::events::read_store::{self, Logged};
use crate::events::view::EventView;
use crate::ids::{EventId, TenantId};
use crate::shared::Shared;
use crate::tenants::Scope;
use crate::topics::{self, PATTERNS_MAX, Pattern};

/// Places of the log that one request looks at.
const LOOK_MAX: i64 = 5000;
/// New events of another process are looked for this often; those of this one ring.
const POLL: Duration = Duration::from_millis(500);

/// `GET /v1/events/{id}`.
pub async fn get(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EventsRead)?;
    Query::of(&request).finish()?;
    let id: EventId = extract::id(&request)?;
    let db = shared.db.clone();
    let event = shared.tasks.run(async move { read_store::get(&db, caller.tenant, id).await }).await??;
    Ok(HttpResponse::Ok().content_type("application/json").body(event.to_json()))
}

/// Where a walk begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Position(i64),
    Now,
}

/// `GET /v1/events`.
pub async fn list(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EventsRead)?;
    let mut query = Query::of(&request);
    let types = parse_types(&mut query);
    let after = parse_after(&mut query);
    let wait = query.wait().unwrap_or_default();
    let limit = query.limit();
    query.finish()?;
    let walk = Walk { tenant: caller.tenant, types, limit };
    let (events, position) = walk_until(&shared, &walk, after, wait).await?;
    let views: Vec<String> = events.iter().map(EventView::to_json).collect();
    let body = format!("{{\"data\":[{}],\"next_cursor\":\"{}\"}}", views.join(","), write_cursor(position));
    Ok(HttpResponse::Ok().content_type("application/json").body(body))
}

fn parse_types(query: &mut Query) -> Option<Vec<Pattern>> {
    let text = query.text("types")?;
    let patterns: Vec<_> = text.split(',').map(Pattern::parse).collect();
    if patterns.len() > PATTERNS_MAX {
        query.fault("types", format!("must be {PATTERNS_MAX} patterns at most"));
        return None;
    }
    match patterns.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(patterns) => Some(patterns),
        Err(error) => {
            query.fault("types", error.to_string());
            None
        }
    }
}

fn parse_after(query: &mut Query) -> After {
    match query.text("after") {
        None => After::Position(0),
        Some(text) if text == "now" => After::Now,
        Some(text) => read_cursor(&text).map_or_else(
            || {
                query.fault("after", "is none of ours; take next_cursor from an earlier answer, or now");
                After::Now
            },
            After::Position,
        ),
    }
}

/// A cursor out of a position in the log.
pub fn write_cursor(position: i64) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(position.to_be_bytes())
}

/// The position in a cursor.
pub fn read_cursor(text: &str) -> Option<i64> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
    <[u8; 8]>::try_from(bytes).ok().map(i64::from_be_bytes).filter(|position| *position >= 0)
}

#[derive(Clone)]
struct Walk {
    tenant: TenantId,
    types: Option<Vec<Pattern>>,
    limit: i64,
}

/// Events behind a cursor, as soon as there are any, and the position that was reached.
async fn walk_until(
    shared: &web::Data<Shared>,
    walk: &Walk,
    after: After,
    wait: Duration,
) -> Result<(Vec<EventView>, i64), ApiError> {
    let until = Instant::now() + wait;
    let mut position = match after {
        After::Position(position) => position,
        After::Now => {
            let db = shared.db.clone();
            shared.tasks.run(async move { read_store::last_position(&db).await }).await??
        }
    };
    loop {
        let rung = shared.wakeups.numbered.notified();
        tokio::pin!(rung);
        // From here on a bell counts, also one that rings while we read.
        rung.as_mut().enable();
        let (db, walk) = (shared.db.clone(), walk.clone());
        let page = shared.tasks.run(async move { page(&db, &walk, position).await }).await??;
        position = page.position;
        if !page.events.is_empty() || Instant::now() >= until || shared.stop.drain.is_cancelled() {
            return Ok((page.events, position));
        }
        if page.more {
            continue;
        }
        tokio::select! {
            () = rung => {}
            () = tokio::time::sleep_until(until.min(Instant::now() + POLL)) => {}
            () = shared.stop.drain.cancelled() => {}
        }
    }
}

struct Page {
    events: Vec<EventView>,
    position: i64,
    /// There is more to look at.
    more: bool,
}

async fn page(db: &Db, walk: &Walk, after: i64) -> Result<Page, StoreError> {
    let look = if walk.types.is_none() { walk.limit } else { LOOK_MAX };
    let logged = read_store::log_after(db, walk.tenant, after, look).await?;
    let more = logged.len() as i64 == look;
    let mut position = logged.last().map_or(after, |last| last.position);
    let matches = |one: &&Logged| topics::matches(walk.types.as_deref(), &one.event_type);
    let limit = usize::try_from(walk.limit).unwrap_or(usize::MAX);
    let wanted: Vec<&Logged> = logged.iter().filter(matches).take(limit).collect();
    if wanted.len() == limit {
        // What stands behind the last one that is shown was not looked at.
        position = wanted.last().map_or(position, |last| last.position);
    }
    let ids: Vec<EventId> = wanted.iter().map(|one| one.event).collect();
    let mut found: HashMap<EventId, EventView> = read_store::get_many(db.pool(), walk.tenant, &ids)
        .await?
        .into_iter()
        .map(|event| (event.id, event))
        .collect();
    Ok(Page { events: ids.iter().filter_map(|id| found.remove(id)).collect(), position, more })
}
