//! For whoever runs it: is it alive, is it ready, what does it speak.

use actix_web::{HttpRequest, HttpResponse, web};

use super::extract::Query;
use super::problem::ApiError;
use crate::shared::Shared;

/// The specification, as it was built in.
pub const OPENAPI: &str = include_str!("../../openapi.yaml");

/// `GET /livez`: the process answers.
pub async fn livez(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    Query::of(&request).finish()?;
    Ok(HttpResponse::Ok().json(serde_json::json!({ "status": "ok" })))
}

/// `GET /readyz`: the process takes work, and the database answers.
pub async fn readyz(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    Query::of(&request).finish()?;
    if shared.stop.drain.is_cancelled() {
        return Ok(HttpResponse::ServiceUnavailable().json(serde_json::json!({ "status": "stopping" })));
    }
    let db = shared.db.clone();
    shared.tasks.run(async move { db.ping().await }).await??;
    Ok(HttpResponse::Ok().json(serde_json::json!({ "status": "ok" })))
}

/// `GET /openapi.yaml`.
pub async fn openapi(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    Query::of(&request).finish()?;
    Ok(HttpResponse::Ok().content_type("application/yaml").body(OPENAPI))
}
