//! [pure] An endpoint as the API shows it, to its owner: custom headers with their values, never a secret.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Endpoint;
use super::expression::{Filter, Transform};
use crate::clock::{Timestamp, millis};
use crate::ids::EndpointId;
use crate::receivers::RetrySpec;
use crate::topics::Pattern;

/// The JSON of an endpoint.
#[derive(Debug, Serialize)]
pub struct EndpointView<'a> {
    id: EndpointId,
    url: &'a str,
    event_types: Option<Vec<&'a str>>,
    filter: Option<&'a str>,
    transform: Option<&'a str>,
    description: &'a str,
    headers: &'a BTreeMap<String, String>,
    metadata: &'a BTreeMap<String, String>,
    status: &'static str,
    status_reason: Option<&'a str>,
    ordering: &'static str,
    max_in_flight: u32,
    rate_limit: Option<RateLimitView>,
    timeout_s: f64,
    retry: RetrySpec,
    signature: &'static str,
    #[serde(with = "millis")]
    created_at: Timestamp,
    #[serde(with = "millis")]
    updated_at: Timestamp,
}

#[derive(Debug, Serialize)]
struct RateLimitView {
    per_s: f64,
    burst: u32,
}

impl<'a> EndpointView<'a> {
    /// Of this endpoint.
    pub fn new(endpoint: &'a Endpoint) -> Self {
        let settings = &endpoint.settings;
        let subscription = &settings.subscription;
        let patterns = subscription.event_types.as_ref();
        Self {
            id: endpoint.id,
            url: &settings.url,
            event_types: patterns.map(|list| list.iter().map(Pattern::as_str).collect()),
            filter: subscription.filter.as_ref().map(Filter::as_str),
            transform: subscription.transform.as_ref().map(Transform::as_str),
            description: &settings.description,
            headers: &settings.headers,
            metadata: &settings.metadata,
            status: settings.status.as_str(),
            status_reason: endpoint.status_reason.as_deref(),
            ordering: settings.ordering.as_str(),
            max_in_flight: settings.max_in_flight,
            rate_limit: settings
                .rate_limit
                .map(|limit| RateLimitView { per_s: limit.per_s, burst: limit.burst }),
            timeout_s: settings.timeout.as_secs_f64(),
            retry: settings.retry.into(),
            signature: settings.signature.as_str(),
            created_at: endpoint.id.created_at(),
            updated_at: endpoint.updated_at,
        }
    }
}
