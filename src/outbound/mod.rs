//! Outbound: the only way to a URL that a user gave.
//!
//! `target` and `address` are the rules, `headers` what a user may add to a request, `client` keeps the rules with the
//! help of `resolver`; `tls`, `timing` and `error` are its parts.
//! Called by the edges (to judge a URL at registration), by the dispatcher, the executor of `http` jobs and test sends.
//! Knows no delivery, job or database: a request goes in, what became of it comes out.
//!
//! Invariant: whatever is not public https is refused unless the operator opened it, before anything is sent; and
//! what is refused is refused in one sentence, whatever stands there.

pub mod address;
pub mod client;
pub mod error;
pub mod headers;
pub mod resolver;
pub mod target;
pub mod timing;
mod tls;

pub use address::{OutboundPolicy, Transport, is_reachable, is_reachable_by};
pub use client::{Answer, BodyEnd, ClientError, Exchange, GuardedClient, OutboundRequest};
pub use error::{ErrorClass, SendError};
pub use headers::{HeaderFault, HeaderFaultKind, HeaderUse, parse_custom_headers};
pub use resolver::{Dns, SystemDns};
pub use target::{NOT_ALLOWED, Refusal, TargetUrl, parse_target};
pub use timing::Timings;
