//! The API: every route on one screen, and the order of the middleware.
//!
//! A handler parses, calls one room, shapes the answer. It holds no connection while it waits, and no decision stands
//! here. Database calls run on the main runtime (`Shared::tasks`), where nobody can drop them halfway.
//!
//! Order: request id → handler (key → body → idempotency → room) → problem document, if it failed.

pub mod deliveries;
pub mod endpoint_preview;
pub mod endpoint_secrets;
pub mod endpoint_stats;
pub mod endpoint_test;
pub mod endpoints;
pub mod events;
pub mod explain;
pub mod explain_job;
pub mod extract;
pub mod idempotency;
pub mod jobs;
pub mod leases;
pub mod operating;
pub mod problem;
pub mod publish;
pub mod queues;
pub mod replays;
pub mod schedules;
pub mod secrets;
pub mod submit;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::dev::{Server, ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderName, HeaderValue, LINK};
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, Error, HttpMessage, HttpRequest, HttpResponse, HttpServer, Resource, guard, web};
use uuid::Uuid;

use self::problem::ApiError;
use crate::shared::Shared;

const HEAD_DEADLINE: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// All routes, for the test that compares them with `openapi.yaml`.
pub const ROUTES: &[(&str, &[&str])] = &[
    ("/v1/jobs", &["GET", "POST"]),
    ("/v1/jobs/batch", &["POST"]),
    ("/v1/jobs/{id}", &["GET"]),
    ("/v1/jobs/{id}/attempts", &["GET"]),
    ("/v1/jobs/{id}/cancel", &["POST"]),
    ("/v1/jobs/{id}/explain", &["GET"]),
    ("/v1/jobs/{id}/retry", &["POST"]),
    ("/v1/leases", &["POST"]),
    ("/v1/leases/extend", &["POST"]),
    ("/v1/leases/report", &["POST"]),
    ("/v1/endpoints", &["GET", "POST"]),
    ("/v1/endpoints/preview", &["POST"]),
    ("/v1/endpoints/{id}", &["GET", "PATCH", "DELETE"]),
    ("/v1/endpoints/{id}/secret", &["GET"]),
    ("/v1/endpoints/{id}/secret/rotate", &["POST"]),
    ("/v1/endpoints/{id}/stats", &["GET"]),
    ("/v1/endpoints/{id}/test", &["POST"]),
    ("/v1/events", &["GET", "POST"]),
    ("/v1/events/batch", &["POST"]),
    ("/v1/events/{id}", &["GET"]),
    ("/v1/events/{id}/explain", &["GET"]),
    ("/v1/deliveries", &["GET"]),
    ("/v1/deliveries/{id}", &["GET"]),
    ("/v1/deliveries/{id}/retry", &["POST"]),
    ("/v1/admin/replays", &["GET", "POST"]),
    ("/v1/admin/replays/{id}", &["GET"]),
    ("/v1/admin/replays/{id}/cancel", &["POST"]),
    ("/v1/schedules", &["GET", "POST"]),
    ("/v1/schedules/{id}", &["GET", "PATCH", "DELETE"]),
    ("/v1/schedules/{id}/trigger", &["POST"]),
    ("/v1/callback-secret", &["GET"]),
    ("/v1/callback-secret/rotate", &["POST"]),
    ("/v1/admin/queues", &["GET"]),
    ("/v1/admin/queues/{name}/pause", &["POST"]),
    ("/v1/admin/queues/{name}/resume", &["POST"]),
    ("/livez", &["GET"]),
    ("/readyz", &["GET"]),
    ("/openapi.yaml", &["GET"]),
];

fn routes(config: &mut web::ServiceConfig) {
    config
        .service(at("/v1/jobs").route(get().to(jobs::list)).route(web::post().to(submit::submit)))
        .service(at("/v1/jobs/batch").route(web::post().to(submit::submit_batch)))
        .service(at("/v1/jobs/{id}").route(get().to(jobs::get)))
        .service(at("/v1/jobs/{id}/attempts").route(get().to(jobs::attempts)))
        .service(at("/v1/jobs/{id}/explain").route(get().to(explain_job::job)))
        .service(at("/v1/jobs/{id}/cancel").route(web::post().to(jobs::cancel)))
        .service(at("/v1/jobs/{id}/retry").route(web::post().to(jobs::retry)))
        .service(at("/v1/leases").route(web::post().to(leases::lease)))
        .service(at("/v1/leases/extend").route(web::post().to(leases::extend)))
        .service(at("/v1/leases/report").route(web::post().to(leases::report)))
        .configure(endpoint_routes)
        .configure(schedule_routes)
        .service(at("/v1/events").route(get().to(events::list)).route(web::post().to(publish::publish)))
        .service(at("/v1/events/batch").route(web::post().to(publish::publish_batch)))
        .service(at("/v1/events/{id}").route(get().to(events::get)))
        .service(at("/v1/events/{id}/explain").route(get().to(explain::event)))
        .service(at("/v1/deliveries").route(get().to(deliveries::list)))
        .service(at("/v1/deliveries/{id}").route(get().to(deliveries::get)))
        .service(at("/v1/deliveries/{id}/retry").route(web::post().to(deliveries::retry)))
        .service(
            at("/v1/admin/replays").route(get().to(replays::list)).route(web::post().to(replays::create)),
        )
        .service(at("/v1/admin/replays/{id}").route(get().to(replays::get)))
        .service(at("/v1/admin/replays/{id}/cancel").route(web::post().to(replays::cancel)))
        .service(at("/v1/callback-secret").route(get().to(secrets::get)))
        .service(at("/v1/callback-secret/rotate").route(web::post().to(secrets::rotate)))
        .service(at("/v1/admin/queues").route(get().to(queues::queues)))
        .service(at("/v1/admin/queues/{name}/pause").route(web::post().to(queues::pause)))
        .service(at("/v1/admin/queues/{name}/resume").route(web::post().to(queues::resume)))
        .service(at("/livez").route(get().to(operating::livez)))
        .service(at("/readyz").route(get().to(operating::readyz)))
        .service(at("/openapi.yaml").route(get().to(operating::openapi)))
        .default_service(web::to(no_such_route));
}

fn endpoint_routes(config: &mut web::ServiceConfig) {
    config
        .service(
            at("/v1/endpoints").route(get().to(endpoints::list)).route(web::post().to(endpoints::create)),
        )
        .service(at("/v1/endpoints/preview").route(web::post().to(endpoint_preview::preview)))
        .service(
            at("/v1/endpoints/{id}")
                .route(get().to(endpoints::get))
                .route(web::patch().to(endpoints::patch))
                .route(web::delete().to(endpoints::delete)),
        )
        .service(at("/v1/endpoints/{id}/secret").route(get().to(endpoint_secrets::get)))
        .service(at("/v1/endpoints/{id}/secret/rotate").route(web::post().to(endpoint_secrets::rotate)))
        .service(at("/v1/endpoints/{id}/stats").route(get().to(endpoint_stats::stats)))
        .service(at("/v1/endpoints/{id}/test").route(web::post().to(endpoint_test::test)));
}

fn schedule_routes(config: &mut web::ServiceConfig) {
    config
        .service(
            at("/v1/schedules").route(get().to(schedules::list)).route(web::post().to(schedules::create)),
        )
        .service(
            at("/v1/schedules/{id}")
                .route(get().to(schedules::get))
                .route(web::patch().to(schedules::patch))
                .route(web::delete().to(schedules::delete)),
        )
        .service(at("/v1/schedules/{id}/trigger").route(web::post().to(schedules::trigger)));
}

/// GET, and HEAD with it (RFC 9110, section 9.1).
fn get() -> actix_web::Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

/// A route that answers other methods with 405.
fn at(path: &'static str) -> Resource {
    web::resource(path).default_service(web::to(move || async move {
        let methods = ROUTES.iter().find(|(route, _)| *route == path).map_or(&[][..], |(_, methods)| methods);
        Err::<HttpResponse, _>(ApiError::MethodNotAllowed(methods.join(", ")))
    }))
}

async fn no_such_route() -> Result<HttpResponse, ApiError> {
    Err(ApiError::NotFound("there is no such address; GET /openapi.yaml lists them"))
}

/// Gives each request an id, and each error its document.
async fn frame(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let id = Uuid::now_v7().simple().to_string();
    request.extensions_mut().insert(id.clone());
    let shared = request.app_data::<web::Data<Shared>>().cloned();
    // Counted as long as it runs: a stop waits for it.
    let _counted = shared.as_ref().map(|shared| shared.requests.token());
    let response = next.call(request).await?;
    let problem = response.response().error().map(|error| match error.as_error::<ApiError>() {
        Some(error) => error.to_response(&id),
        // What actix refuses by itself: a head that makes no sense.
        None => ApiError::NotJson(error.to_string()).to_response(&id),
    });
    let mut response = match problem {
        Some(problem) => response.into_response(problem).map_into_left_body(),
        None => response.map_into_right_body(),
    };
    if let Ok(value) = HeaderValue::try_from(id) {
        response.headers_mut().insert(HeaderName::from_static("request-id"), value);
    }
    Ok(response)
}

/// The server on a socket that is bound already. `Shared` is built before: actix calls the factory once per thread.
/// # Errors
/// The socket cannot be used.
pub fn server(listener: TcpListener, shared: Arc<Shared>) -> std::io::Result<Server> {
    let workers = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    let data = web::Data::from(shared);
    let server =
        HttpServer::new(move || App::new().app_data(data.clone()).wrap(from_fn(frame)).configure(routes))
            .workers(workers)
            .client_request_timeout(HEAD_DEADLINE)
            .keep_alive(KEEP_ALIVE)
            // Who closes its side is gone: a long poll ends then, and what it was about to get goes to the next one.
            .h1_allow_half_closed(false)
            .disable_signals()
            .shutdown_timeout(u64::from(u16::MAX))
            .listen(listener)?;
    Ok(server.run())
}

struct ListLink<'a> {
    request: &'a HttpRequest,
    limit: i64,
}

/// A page: `{"data": […], "next_cursor": …}`, with a link to the next one. One object more than asked for tells that
/// there is a next page.
fn list_answer(link: &ListLink<'_>, mut views: Vec<String>, ids: &[Uuid]) -> HttpResponse {
    let limit = usize::try_from(link.limit).unwrap_or(usize::MAX);
    let more = views.len() > limit;
    views.truncate(limit);
    let cursor = ids.get(views.len().wrapping_sub(1)).filter(|_| more).map(|id| extract::write_cursor(*id));
    let mut response = HttpResponse::Ok();
    if let Some(cursor) = &cursor {
        let pairs = url::form_urlencoded::parse(link.request.query_string().as_bytes())
            .filter(|(name, _)| name != "cursor");
        let query = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(pairs)
            .append_pair("cursor", cursor)
            .finish();
        response.insert_header((LINK, format!("<{}?{query}>; rel=\"next\"", link.request.path())));
    }
    let next = cursor.map_or_else(|| "null".to_owned(), |cursor| format!("\"{cursor}\""));
    response
        .content_type("application/json")
        .body(format!("{{\"data\":[{}],\"next_cursor\":{next}}}", views.join(",")))
}
