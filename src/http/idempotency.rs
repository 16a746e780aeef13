//! `Idempotency-Key`: reads the header, finds the first answer, holds the key while a request runs.
//!
//! Called by the handlers of every POST that creates. The rules stand in `idempotency`.

use actix_web::HttpRequest;
use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{LOCATION, RETRY_AFTER};
use sha2::{Digest, Sha256};

use super::extract::invalid;
use super::problem::ApiError;
use crate::idempotency::{self, KEY_MAX_BYTES, NewKey, RunningKey, StoredAnswer};
use crate::ids::TenantId;
use crate::secret::{SealContext, SealError, Sealer};
use crate::shared::Shared;

/// The key of a request, held while it runs.
#[derive(Debug)]
pub struct HeldKey {
    key: String,
    fingerprint: [u8; 32],
    _running: RunningKey,
}

/// How the request goes on.
pub enum Standing {
    /// Without a key.
    Free,
    /// As the first under its key.
    First(HeldKey),
    /// Not at all: this is the answer.
    Answered(HttpResponse),
}

/// Reads the header and looks the key up.
/// # Errors
/// [`ApiError::KeyReused`], [`ApiError::KeyRunning`], [`ApiError::Invalid`] for a key that cannot be one.
pub async fn begin(
    request: &HttpRequest,
    shared: &actix_web::web::Data<Shared>,
    tenant: TenantId,
    body: &[u8],
) -> Result<Standing, ApiError> {
    let Some(header) = request.headers().get("idempotency-key") else {
        return Ok(Standing::Free);
    };
    let text = header.to_str().map_err(|_| invalid("/idempotency-key", "must be visible ASCII"))?.trim();
    // A Structured Field string as the draft has it, or bare as most clients send it.
    let key = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text).to_owned();
    if key.is_empty() || key.len() > KEY_MAX_BYTES {
        return Err(invalid("/idempotency-key", "must be 1 to 255 characters long"));
    }
    let mut hasher = Sha256::new();
    for part in [request.method().as_str().as_bytes(), request.path().as_bytes(), body] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let held = HeldKey {
        fingerprint: hasher.finalize().into(),
        _running: shared.running_keys.begin(tenant, &key).ok_or(ApiError::KeyRunning)?,
        key,
    };
    match find(shared, tenant, &held).await? {
        Some(answer) => Ok(Standing::Answered(answer)),
        None => Ok(Standing::First(held)),
    }
}

/// The answer that is stored under the key, if the key was used for the same request.
/// # Errors
/// [`ApiError::KeyReused`].
pub async fn find(
    shared: &actix_web::web::Data<Shared>,
    tenant: TenantId,
    held: &HeldKey,
) -> Result<Option<HttpResponse>, ApiError> {
    let (db, key) = (shared.db.clone(), held.key.clone());
    let stored = shared.tasks.run(async move { idempotency::store::find(&db, tenant, &key).await }).await??;
    match stored {
        None => Ok(None),
        Some(stored) if stored.fingerprint != held.fingerprint => Err(ApiError::KeyReused),
        Some(mut stored) => {
            if let Some(sealed) = stored.body.strip_prefix(SEALED) {
                let opened = shared.sealer.open(&seal_context(tenant), sealed)?;
                stored.body.clone_from(opened.expose());
            }
            Ok(Some(replay(stored)))
        }
    }
}

/// Before the sealed body of an answer; JSON never begins like this.
const SEALED: &[u8] = b"\0sealed\0";

fn seal_context(tenant: TenantId) -> SealContext {
    SealContext { tenant: tenant.uuid(), owner: tenant.uuid(), column: "idempotency_keys.body" }
}

fn replay(stored: StoredAnswer) -> HttpResponse {
    let status = StatusCode::from_u16(stored.status).unwrap_or(StatusCode::ACCEPTED);
    let mut response = HttpResponse::build(status);
    response.content_type("application/json").insert_header(("idempotency-replayed", "true"));
    if let Some(location) = stored.location {
        // As the first answer had it: a job that is accepted is asked about later.
        if status == StatusCode::ACCEPTED && location.starts_with("/v1/jobs/") {
            response.insert_header((RETRY_AFTER, "1"));
        }
        response.insert_header((LOCATION, location));
    }
    response.body(stored.body)
}

impl HeldKey {
    /// As [`Self::stored`], for an answer that shows a secret: its body is sealed.
    /// # Errors
    /// [`SealError`].
    pub fn stored_sealed(
        &self,
        sealer: &Sealer,
        tenant: TenantId,
        location: Option<String>,
        body: &str,
    ) -> Result<NewKey, SealError> {
        let sealed = sealer.seal(&seal_context(tenant), body.as_bytes())?;
        Ok(NewKey { body: [SEALED, &sealed].concat(), ..self.stored(location, "") })
    }

    /// What is stored with the object.
    pub fn stored(&self, location: Option<String>, body: &str) -> NewKey {
        NewKey {
            key: self.key.clone(),
            fingerprint: self.fingerprint,
            location,
            body: body.as_bytes().to_vec(),
        }
    }
}
