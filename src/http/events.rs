//! Events as they became visible: one; and the log by cursor, with a long poll.
//!
//! A long poll is woken by this process's fan-out, and looks by itself every now and then, because another process may
//! have numbered what it waits for.

use std::time::Duration;

use actix_web::http::header::LINK;
use actix_web::{HttpRequest, HttpResponse, web};
use tokio::time::Instant;

use super::extract::{self, Query};
use super::problem::ApiError;
use crate::events::cursor::Cursor;
use crate::events::log::{self, LogPage, Reading};
use crate::events::{read_store, view};
use crate::ids::EventId;
use crate::shared::Shared;
use crate::tenants::Scope;
use crate::topics::{PATTERNS_MAX, Pattern};

/// `GET /v1/events/{id}`.
pub async fn get(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EventsRead)?;
    Query::of(&request).finish()?;
    let id: EventId = extract::id(&request)?;
    let (db, tenant) = (shared.db.clone(), caller.tenant);
    let event = shared.tasks.run(async move { read_store::get(&db, tenant, id).await }).await??;
    Ok(HttpResponse::Ok().content_type("application/json").body(view::stored(&event)))
}

/// Where to begin.
enum After {
    /// Behind all that is there.
    Now,
    /// Behind this place.
    Cursor(Cursor),
}

/// `GET /v1/events`: oldest first.
pub async fn list(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EventsRead)?;
    let mut query = Query::of(&request);
    let types = parse_types(&mut query);
    let after = parse_after(&mut query);
    let wait = query.wait().unwrap_or_default();
    let limit = usize::try_from(query.limit()).unwrap_or(1);
    query.finish()?;
    let reading = Reading { tenant: caller.tenant, types, limit };
    let until = Instant::now() + wait;
    let after = match after {
        After::Cursor(cursor) => cursor,
        After::Now => {
            let (db, tenant) = (shared.db.clone(), reading.tenant);
            shared.tasks.run(async move { log::now(&db, tenant).await }).await??
        }
    };
    let page = wait_for_events(&shared, reading, after, until).await?;
    Ok(answer(&request, &page))
}

/// The first page that holds an event, or what there is when the time is over.
async fn wait_for_events(
    shared: &web::Data<Shared>,
    reading: Reading,
    mut after: Cursor,
    until: Instant,
) -> Result<LogPage, ApiError> {
    let listener = shared.event_bells.listen(reading.tenant);
    loop {
        let rung = listener.rung();
        tokio::pin!(rung);
        // From here on a ring counts, also one that comes while we read.
        rung.as_mut().enable();
        let (db, asked) = (shared.db.clone(), reading.clone());
        let page = shared.tasks.run(async move { log::page(&db, &asked, after).await }).await??;
        let now = Instant::now();
        if !page.events.is_empty() || now >= until || shared.stop.drain.is_cancelled() {
            return Ok(page);
        }
        after = page.next;
        if !page.at_end {
            continue;
        }
        let look_again = now + Duration::from_millis(rand::random_range(850..=1150));
        tokio::select! {
            () = rung => {}
            () = tokio::time::sleep_until(until.min(look_again)) => {}
            () = shared.stop.drain.cancelled() => return Ok(page),
        }
    }
}

fn parse_types(query: &mut Query) -> Option<Vec<Pattern>> {
    let text = query.text("types")?;
    if text.split(',').count() > PATTERNS_MAX {
        query.fault("types", format!("may have {PATTERNS_MAX} patterns at most"));
        return None;
    }
    let mut patterns = Vec::new();
    for one in text.split(',') {
        match Pattern::parse(one) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => query.fault("types", format!("each pattern {error}")),
        }
    }
    Some(patterns)
}

fn parse_after(query: &mut Query) -> After {
    match query.text("after").as_deref() {
        None => After::Cursor(Cursor::START),
        Some("now") => After::Now,
        Some(text) => match text.parse() {
            Ok(cursor) => After::Cursor(cursor),
            Err(error) => {
                query.fault("after", format!("{error}"));
                After::Now
            }
        },
    }
}

fn answer(request: &HttpRequest, page: &LogPage) -> HttpResponse {
    let next = page.next.to_string();
    let pairs = url::form_urlencoded::parse(request.query_string().as_bytes());
    let query = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(pairs.filter(|(name, _)| name != "after"))
        .append_pair("after", &next)
        .finish();
    let views: Vec<String> = page.events.iter().map(view::stored).collect();
    HttpResponse::Ok()
        .insert_header((LINK, format!("<{}?{query}>; rel=\"next\"", request.path())))
        .content_type("application/json")
        .body(format!("{{\"data\":[{}],\"next_cursor\":\"{next}\"}}", views.join(",")))
}
