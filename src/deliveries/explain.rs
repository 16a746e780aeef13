//! [pure] What became of an event, endpoint by endpoint, in a word and in a sentence.
//!
//! Called by `http::explain`, which brings the event, the endpoints as they are now, and the deliveries that were made.

use serde::Serialize;

use super::matched::{Matched, matched};
use super::read_store::EventDelivery;
use crate::clock::{Timestamp, millis, rfc3339};
use crate::endpoints::expression::EventContext;
use crate::endpoints::{Endpoint, EndpointStatus};
use crate::ids::{DeliveryId, EndpointId};

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The receiver said 2xx.
    Delivered,
    /// It will be sent, perhaps again.
    Waiting,
    /// Nothing more is tried.
    Failed,
    /// The endpoint is for other types.
    TypeMismatch,
    /// The filter did not let it through.
    Filtered,
    /// It waits for the endpoint to go on.
    Paused,
    /// The endpoint is disabled, and had none of it.
    Disabled,
}

/// One endpoint's part.
#[derive(Debug, Clone, Serialize)]
pub struct Explained {
    endpoint_id: EndpointId,
    outcome: Outcome,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery_id: Option<DeliveryId>,
    #[serde(with = "millis", skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<Timestamp>,
}

/// Explains an endpoint's part. `delivery`: the last one that was made for it. `event_at`: when the event was published.
pub fn explain(
    endpoint: &Endpoint,
    event: (&str, Timestamp),
    context: Option<&Result<EventContext, String>>,
    delivery: Option<&EventDelivery>,
) -> Explained {
    let (outcome, reason) = match delivery {
        Some(delivery) => of_delivery(endpoint, delivery),
        None => without_delivery(endpoint, event, context),
    };
    Explained {
        endpoint_id: endpoint.id,
        outcome,
        reason,
        delivery_id: delivery.map(|delivery| delivery.id),
        next_attempt_at: delivery
            .filter(|_| outcome == Outcome::Waiting)
            .and_then(|delivery| delivery.due_at),
    }
}

fn of_delivery(endpoint: &Endpoint, delivery: &EventDelivery) -> (Outcome, String) {
    let tries = |count: i32| if count == 1 { "1 attempt".to_owned() } else { format!("{count} attempts") };
    let error = delivery.error.as_deref().unwrap_or("no answer is on record");
    if let Some(due_at) = delivery.due_at {
        if endpoint.settings.status == EndpointStatus::Paused {
            return (Outcome::Paused, "the endpoint is paused; it is sent when it goes on".to_owned());
        }
        let reason = match delivery.attempt {
            0 => "it has its turn next, or waits for the endpoint's limits or for an earlier one of its key"
                .to_owned(),
            count => format!("{} failed ({error}); the next one is due at {}", tries(count), rfc3339(due_at)),
        };
        return (Outcome::Waiting, reason);
    }
    if delivery.succeeded {
        return (Outcome::Delivered, format!("delivered after {}", tries(delivery.attempt)));
    }
    if delivery.code.as_deref() == Some("endpoint_disabled") {
        return (Outcome::Disabled, error.to_owned());
    }
    (Outcome::Failed, format!("failed after {}: {error}", tries(delivery.attempt)))
}

fn without_delivery(
    endpoint: &Endpoint,
    (event_type, event_at): (&str, Timestamp),
    context: Option<&Result<EventContext, String>>,
) -> (Outcome, String) {
    if !endpoint.settings.subscription.matches_type(event_type) {
        return (Outcome::TypeMismatch, format!("its event_types do not match {event_type}"));
    }
    if endpoint.settings.status == EndpointStatus::Disabled {
        let reason =
            endpoint.status_reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        return (Outcome::Disabled, format!("the endpoint is disabled{reason}"));
    }
    match matched(&endpoint.settings.subscription, context) {
        Matched::No => (Outcome::Filtered, "its filter is false for this event".to_owned()),
        Matched::Failed { code, message } => {
            (Outcome::Failed, format!("its {code} fails on this event: {message}"))
        }
        Matched::Yes { .. } if endpoint.id.created_at() > event_at => (
            Outcome::TypeMismatch,
            "the endpoint was made after the event; a replay of what is missing brings it".to_owned(),
        ),
        Matched::Yes { .. } => {
            let reason = "it matches as the endpoint is now, and no delivery was made: the fan-out is under way, or the endpoint was changed or disabled then";
            (Outcome::Waiting, reason.to_owned())
        }
    }
}
