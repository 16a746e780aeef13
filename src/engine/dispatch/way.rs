//! How a delivery goes to its receiver: where to, with which headers and keys, how long to wait, when to try again. A
//! callback's way stands with its job, an endpoint's in the book.
//!
//! Called by `transmit`, before each try, so that a changed endpoint is obeyed from its next try on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::backoff::RetryPolicy;
use crate::deliveries::end_store::EndReason;
use crate::deliveries::store::{Loaded, Receiver};
use crate::endpoints::EndpointStatus;
use crate::ids::{EndpointId, JobId, TenantId};
use crate::jobs::CallbackOptions;
use crate::receivers::{RetrySpec, TIMEOUT_DEFAULT};
use crate::secrets::Owner;
use crate::shared::Shared;
use crate::signing::SigningKey;

/// What is to be done with a delivery.
#[derive(Debug)]
pub(super) enum Route {
    /// It goes this way.
    Way(Box<Way>),
    /// It waits: its endpoint is paused.
    Later,
    /// It ends unsent: its endpoint is disabled, or no more.
    Ended(EndReason),
}

/// The way.
#[derive(Debug)]
pub(super) struct Way {
    /// Where to; its text is judged again before it is called.
    pub(super) url: String,
    /// Headers of the receiver's own wish.
    pub(super) headers: BTreeMap<String, String>,
    /// What signs, or why there is nothing.
    pub(super) keys: Result<Arc<Vec<SigningKey>>, String>,
    /// How long an answer may take.
    pub(super) timeout: Duration,
    /// When to try again.
    pub(super) retry: RetryPolicy,
}

impl Way {
    /// The way of a delivery.
    pub(super) async fn to(shared: &Shared, loaded: &Loaded) -> Route {
        let tenant = loaded.due.tenant;
        match &loaded.receiver {
            Receiver::Endpoint(endpoint) => Self::to_endpoint(shared, tenant, *endpoint).await,
            Receiver::Callback { job, url, sealed_options } => {
                let options = shared.open_options(tenant, *job, sealed_options.as_deref());
                let options = options.map_err(|error| error.to_string());
                Route::Way(Box::new(Self::to_callback(shared, (tenant, *job), url, options).await))
            }
        }
    }

    async fn to_endpoint(shared: &Shared, tenant: TenantId, id: EndpointId) -> Route {
        let mut found = shared.endpoints.get(tenant, id);
        if found.is_none() {
            // Another process may have made both, the endpoint and the delivery, since the book was read.
            if let Err(error) = shared.endpoints.refresh(&shared.db, &shared.sealer).await {
                tracing::warn!(%error, "cannot read the endpoints");
                return Route::Later;
            }
            found = shared.endpoints.get(tenant, id);
        }
        let Some(endpoint) = found else { return Route::Ended(EndReason::DELETED) };
        match endpoint.settings.status {
            EndpointStatus::Enabled => {}
            EndpointStatus::Paused => return Route::Later,
            EndpointStatus::Disabled => return Route::Ended(EndReason::DISABLED),
        }
        let keys = shared.secrets.signing(&shared.db, &shared.sealer, endpoint.secrets()).await;
        Route::Way(Box::new(Self {
            url: endpoint.settings.url.clone(),
            headers: endpoint.settings.headers.clone(),
            keys: keys.map_err(|error| error.to_string()),
            timeout: endpoint.settings.timeout,
            retry: endpoint.settings.retry,
        }))
    }

    async fn to_callback(
        shared: &Shared,
        (tenant, job): (TenantId, JobId),
        url: &str,
        options: Result<CallbackOptions, String>,
    ) -> Self {
        let (options, broken) = match options {
            Ok(options) => (options, None),
            Err(error) => {
                tracing::error!(job.id = %job, error, "the options of a callback cannot be opened");
                (CallbackOptions::default(), Some(error))
            }
        };
        let keys = match (broken, &options.secret) {
            (Some(error), _) => Err(error),
            (None, Some(text)) => text
                .parse()
                .map(|secret| Arc::new(vec![secret]))
                .map_err(|_| "the callback's secret cannot be read".to_owned()),
            (None, None) => {
                let signing =
                    shared.secrets.signing(&shared.db, &shared.sealer, Owner::callbacks(tenant)).await;
                signing.map_err(|error| error.to_string())
            }
        };
        Self {
            url: url.to_owned(),
            keys,
            timeout: options.timeout_s.map_or(TIMEOUT_DEFAULT, Duration::from_secs_f64),
            retry: options.retry.map_or(RetryPolicy::DELIVERIES, RetrySpec::policy),
            headers: options.headers,
        }
    }
}
