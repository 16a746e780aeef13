//! Outbound: the only way to a URL that a user gave.
//!
//! The rules stand in `target`; `client` keeps them with the help of `resolver`; `tls`, `timing` and `error` are its
//! parts.
//! Called by the dispatcher, the executor of `http` jobs and test sends.
//! Knows no delivery, job or database: a request goes in, what became of it comes out.
//!
//! Invariant: whatever is not public https is refused unless the operator opened it, before anything is sent; and
//! what is refused is refused in one sentence, whatever stands there.

pub mod client;
pub mod error;
pub mod resolver;
pub mod timing;
mod tls;

pub use client::{Answer, BodyEnd, ClientError, Exchange, GuardedClient, OutboundRequest};
pub use error::{ErrorClass, SendError};
pub use resolver::{Dns, SystemDns};
pub use timing::Timings;
