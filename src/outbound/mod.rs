//! Outbound: the only way to a URL that a user gave.
//!
//! Today the rules: which addresses and URLs may be called, and which headers may be added. The client that keeps
//! them joins this room next.
//!
//! Invariant: whatever is not public https is refused unless the operator opened it.

pub mod address;
pub mod headers;
pub mod target;

pub use address::{OutboundPolicy, Transport, is_reachable, is_reachable_by};
pub use headers::{HeaderFault, HeaderFaultKind, HeaderUse, parse_custom_headers};
pub use target::{NOT_ALLOWED, Refusal, TargetUrl, parse_target};
