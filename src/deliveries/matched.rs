//! [pure] Does an event go to an endpoint, and with which data? And which deliveries go one after another?
//!
//! Called by `engine::fan_out`, replays, and whoever explains what became of an event. The type was matched before.

use sha2::{Digest, Sha256};

use crate::endpoints::expression::EventContext;
use crate::endpoints::{DeliveryOrder, Subscription};

/// The verdict on an event and an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Matched {
    /// The filter does not let it through.
    No,
    /// It goes there.
    Yes {
        /// What the transform made of it; `None`: the event's own data.
        data: Option<String>,
    },
    /// The filter or the transform failed on it: the delivery is there, and failed.
    Failed {
        /// `filter` or `transform`.
        code: &'static str,
        /// Why.
        message: String,
    },
}

/// Judges. `context` is needed by filters and transforms only.
pub fn matched(subscription: &Subscription, context: Option<&Result<EventContext, String>>) -> Matched {
    if subscription.filter.is_none() && subscription.transform.is_none() {
        return Matched::Yes { data: None };
    }
    let code = if subscription.filter.is_some() { "filter" } else { "transform" };
    let context = match context {
        Some(Ok(context)) => context,
        Some(Err(error)) => return Matched::Failed { code, message: error.clone() },
        None => {
            return Matched::Failed { code, message: "the event's data is not there any more".to_owned() };
        }
    };
    match subscription.wants(context) {
        Err(message) => return Matched::Failed { code: "filter", message },
        Ok(false) => return Matched::No,
        Ok(true) => {}
    }
    match subscription.transform.as_ref().map(|transform| transform.eval(context)) {
        None => Matched::Yes { data: None },
        Some(Ok(data)) => Matched::Yes { data: Some(data) },
        Some(Err(message)) => Matched::Failed { code: "transform", message },
    }
}

/// With which other deliveries of its endpoint a delivery goes one after another; `None`: with none.
pub fn order_of(ordering: DeliveryOrder, ordering_key: Option<&str>) -> Option<i64> {
    match ordering {
        DeliveryOrder::Unordered => None,
        DeliveryOrder::ByKey => ordering_key.map(order_key),
        DeliveryOrder::Strict => Some(0),
    }
}

/// A number for an ordering key. Two keys with the same number are only kept in order with each other.
fn order_key(ordering_key: &str) -> i64 {
    let digest = Sha256::digest(ordering_key.as_bytes());
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(bytes)
}
