//! Endpoints: who wants to hear of which events, and how they want to be told.
//!
//! Holds the noun. `new_endpoint` reads a request or a merge patch, `expression` evaluates filters and transforms,
//! `change` writes an endpoint together with all that must agree with it, `store` is the only SQL on `endpoints`,
//! `health_store` on what the sender knows of them. Called by `http::endpoints` and by the fan-out and the dispatcher,
//! which keep all endpoints in memory and follow their changes by number. Knows no HTTP, no loop, no network.
//!
//! Invariant: every write takes the next change number, so that a reader who remembers the last one misses nothing.

pub mod book;
pub mod change;
pub mod expression;
pub mod health_store;
pub mod new_endpoint;
pub mod store;
pub mod view;

use std::collections::BTreeMap;
use std::time::Duration;

use self::expression::{EventContext, Filter, Transform};
use crate::backoff::RetryPolicy;
use crate::clock::Timestamp;
use crate::ids::{EndpointId, TenantId};
use crate::receivers::TIMEOUT_DEFAULT;
use crate::secrets::Owner;
use crate::signing::SignatureKind;
use crate::topics::{self, Pattern};

/// Whether an endpoint is told of anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndpointStatus {
    /// What arrives is sent.
    Enabled,
    /// What arrives is not kept.
    Disabled,
    /// What arrives is kept, and nothing is sent.
    Paused,
}

impl EndpointStatus {
    /// All of them by name.
    pub const WORDS: [(&'static str, Self); 3] =
        [("enabled", Self::Enabled), ("disabled", Self::Disabled), ("paused", Self::Paused)];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
            Self::Paused => "paused",
        }
    }

    /// The number in `endpoints.status`.
    fn code(self) -> i16 {
        match self {
            Self::Enabled => 1,
            Self::Disabled => 2,
            Self::Paused => 3,
        }
    }
}

/// In which order an endpoint's deliveries go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryOrder {
    /// In none.
    Unordered,
    /// One after another for each `ordering_key`.
    ByKey,
    /// One after another.
    Strict,
}

impl DeliveryOrder {
    /// All of them by name.
    pub const WORDS: [(&'static str, Self); 3] =
        [("none", Self::Unordered), ("key", Self::ByKey), ("strict", Self::Strict)];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unordered => "none",
            Self::ByKey => "key",
            Self::Strict => "strict",
        }
    }

    /// The number in `endpoints.ordering`.
    fn code(self) -> i16 {
        match self {
            Self::Unordered => 0,
            Self::ByKey => 1,
            Self::Strict => 2,
        }
    }
}

/// How fast an endpoint may be told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimit {
    /// Deliveries a second, fractions allowed.
    pub per_s: f64,
    /// So many at once after a rest.
    pub burst: u32,
}

/// What an endpoint wants to hear, and in which words.
#[derive(Debug, Clone, Default)]
pub struct Subscription {
    /// Of events of these types; `None`: of all.
    pub event_types: Option<Vec<Pattern>>,
    /// Of those for which this is true; `None`: of all.
    pub filter: Option<Filter>,
    /// Makes the data of the body; `None`: the event's own, byte for byte.
    pub transform: Option<Transform>,
}

impl Subscription {
    /// Is it for events of this type? Cheap: asked for each event and endpoint.
    pub fn matches_type(&self, event_type: &str) -> bool {
        topics::matches(self.event_types.as_deref(), event_type)
    }

    /// Does the filter let the event through?
    /// # Errors
    /// The filter fails on the event's data: the delivery is `failed` with this reason (code `filter`).
    pub fn wants(&self, event: &EventContext) -> Result<bool, String> {
        self.filter.as_ref().map_or(Ok(true), |filter| filter.eval(event))
    }
}

/// All that a tenant says about an endpoint.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to POST, in canonical form.
    pub url: String,
    /// What it wants to hear.
    pub subscription: Subscription,
    /// For people.
    pub description: String,
    /// Headers to add.
    pub headers: BTreeMap<String, String>,
    /// Free strings.
    pub metadata: BTreeMap<String, String>,
    /// Whether it is told of anything.
    pub status: EndpointStatus,
    /// In which order.
    pub ordering: DeliveryOrder,
    /// On the wire at a time.
    pub max_in_flight: u32,
    /// How fast; `None`: as fast as it answers.
    pub rate_limit: Option<RateLimit>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// When to try again.
    pub retry: RetryPolicy,
    /// How deliveries are signed.
    pub signature: SignatureKind,
}

impl Settings {
    /// On the wire at a time, where nothing else is said.
    pub const MAX_IN_FLIGHT: u32 = 32;

    /// All defaults of the contract.
    pub fn new(url: String) -> Self {
        Self {
            url,
            subscription: Subscription::default(),
            description: String::new(),
            headers: BTreeMap::new(),
            metadata: BTreeMap::new(),
            status: EndpointStatus::Enabled,
            ordering: DeliveryOrder::Unordered,
            max_in_flight: Self::MAX_IN_FLIGHT,
            rate_limit: None,
            timeout: TIMEOUT_DEFAULT,
            retry: RetryPolicy::DELIVERIES,
            signature: SignatureKind::HmacSha256,
        }
    }
}

/// Who wants to hear.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Whose.
    pub tenant: TenantId,
    /// Its id; its `uuid()` is the target of its deliveries.
    pub id: EndpointId,
    /// What its owner says.
    pub settings: Settings,
    /// Why it is disabled, if Ringback did that.
    pub status_reason: Option<String>,
    /// Grows with each change of this endpoint; the `ETag`.
    pub version: i64,
    /// Grows with each change of any endpoint.
    pub change: i64,
    /// When it was changed last.
    pub updated_at: Timestamp,
    /// A tombstone: it is no more.
    pub deleted: bool,
}

impl Endpoint {
    /// A new one.
    pub fn new(tenant: TenantId, settings: Settings) -> Self {
        let id = EndpointId::fresh();
        Self {
            tenant,
            id,
            settings,
            status_reason: None,
            version: 1,
            change: 0,
            updated_at: id.created_at(),
            deleted: false,
        }
    }

    /// The owner of its signing secrets.
    pub fn secrets(&self) -> Owner {
        Owner { tenant: self.tenant, id: self.id.uuid(), kind: self.settings.signature }
    }
}
