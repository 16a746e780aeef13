//! What went wrong on the way to a receiver: a closed set of classes, found in the errors' types.
//!
//! Called by `outbound` when a send or a body fails. Walks the chain of sources and looks at types and kinds, never
//! at message texts, which belong to other crates and change.
//!
//! Invariants: the message is safe to show to the user whose URL it was: it names no resolved address and quotes
//! nothing that the other side sent; and every blocked target has one and the same message.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use crate::target::NOT_ALLOWED;

/// How far a request got, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The name is being looked up, or nothing has begun.
    Resolving,
    /// TCP is being connected.
    Connecting,
    /// The TLS handshake has begun.
    Handshaking,
    /// There is a connection: the request was or is being sent.
    Exchanging,
}

/// The class of a failed send; `as_str` gives the contract's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The policy refuses the target: final, nothing was sent.
    BlockedAddress,
    /// The name could not be resolved.
    Dns,
    /// No TCP connection came about.
    Connect,
    /// TLS failed: the handshake, the certificate, or a broken record.
    Tls,
    /// The total deadline passed, or connecting took too long.
    Timeout,
    /// The connection ended before the answer was complete.
    Reset,
    /// What came back is not HTTP/1.1.
    Protocol,
}

impl ErrorClass {
    /// The code that attempts carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BlockedAddress => "blocked_address",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Protocol => "protocol",
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why there is no answer, or why its body broke off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SendError {
    /// What a caller goes by.
    pub class: ErrorClass,
    /// A sentence for the owner of the URL.
    pub message: String,
}

impl SendError {
    pub(super) fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into() }
    }

    pub(super) fn blocked() -> Self {
        Self::new(ErrorClass::BlockedAddress, NOT_ALLOWED)
    }

    pub(super) fn timed_out(phase: Phase) -> Self {
        Self::new(
            ErrorClass::Timeout,
            match phase {
                Phase::Resolving => "timed out while resolving the name",
                Phase::Connecting => "timed out while connecting",
                Phase::Handshaking => "timed out during the TLS handshake",
                Phase::Exchanging => "timed out while waiting for the answer",
            },
        )
    }

    /// Classifies an error of the client.
    pub(super) fn of(error: &reqwest::Error, phase: Phase) -> Self {
        let mut evidence = Evidence::default();
        evidence.gather(error, DEPTH_MAX);
        if evidence.is_blocked {
            return Self::blocked();
        }
        if evidence.is_lookup {
            return Self::new(ErrorClass::Dns, "the name could not be resolved");
        }
        if let Some(reason) = evidence.tls {
            return Self::new(ErrorClass::Tls, reason);
        }
        if error.is_timeout() {
            return Self::timed_out(phase);
        }
        if error.is_connect() {
            return Self::while_connecting(evidence.io, phase);
        }
        match (evidence.http, evidence.io) {
            (Some(HttpFault::Closed), _) | (_, Some(_)) => {
                Self::new(ErrorClass::Reset, "the connection ended before the answer was complete")
            }
            (Some(HttpFault::NotHttp) | None, None) => {
                Self::new(ErrorClass::Protocol, "the answer is not HTTP/1.1, or its head is too large")
            }
        }
    }

    fn while_connecting(io: Option<io::ErrorKind>, phase: Phase) -> Self {
        if phase == Phase::Handshaking {
            return Self::new(ErrorClass::Tls, "the connection ended during the TLS handshake");
        }
        Self::new(
            ErrorClass::Connect,
            match io {
                Some(io::ErrorKind::ConnectionRefused) => "the connection was refused",
                Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
                    "the host is unreachable"
                }
                Some(io::ErrorKind::TimedOut) => "the host did not answer",
                _ => "no connection could be made",
            },
        )
    }
}

/// A name that resolves to an address that may not be called. Made by the resolver, found here.
#[derive(Debug, thiserror::Error)]
#[error("{NOT_ALLOWED}")]
pub(super) struct BlockedName;

/// A name without addresses. Made by the resolver, found here.
#[derive(Debug, thiserror::Error)]
#[error("the name could not be resolved")]
pub(super) struct LookupFailed(#[source] pub(super) Option<io::Error>);

/// A chain of sources is followed this far; the longest known has eight links.
const DEPTH_MAX: usize = 16;

/// What the types in a chain of errors say.
#[derive(Default)]
struct Evidence {
    is_blocked: bool,
    is_lookup: bool,
    tls: Option<String>,
    http: Option<HttpFault>,
    io: Option<io::ErrorKind>,
}

#[derive(Clone, Copy)]
enum HttpFault {
    NotHttp,
    Closed,
}

impl Evidence {
    fn gather(&mut self, error: &(dyn StdError + 'static), depth: usize) {
        self.is_blocked |= error.is::<BlockedName>();
        self.is_lookup |= error.is::<LookupFailed>();
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            self.tls = Some(tls_reason(error));
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            self.http = http_fault(error);
        }
        if depth == 0 {
            return;
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            self.io = Some(error.kind());
            // The source of an io::Error skips the error inside it.
            if let Some(inner) = error.get_ref() {
                self.gather(inner, depth - 1);
                return;
            }
        }
        if let Some(source) = error.source() {
            self.gather(source, depth - 1);
        }
    }
}

fn http_fault(error: &hyper::Error) -> Option<HttpFault> {
    if error.is_parse() {
        Some(HttpFault::NotHttp)
    } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        Some(HttpFault::Closed)
    } else {
        None
    }
}

/// Our own words for the faults that a receiver's owner can mend; nothing of what the other side sent.
fn tls_reason(error: &rustls::Error) -> String {
    use rustls::{CertificateError, Error};
    let reason = match error {
        Error::InvalidCertificate(fault) => match fault {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the certificate has expired"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the certificate is not valid yet"
            }
            CertificateError::UnknownIssuer => {
                "the certificate was not issued by an authority that is trusted here"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the certificate is for another host"
            }
            CertificateError::Revoked => "the certificate was revoked",
            _ => "the certificate is not valid",
        },
        Error::InvalidMessage(_) => "the other side does not speak TLS",
        Error::AlertReceived(_) => "the other side ended the TLS handshake with an alert",
        Error::PeerIncompatible(_) => "the other side offers no TLS version or cipher in common",
        Error::NoCertificatesPresented => "the other side presented no certificate",
        // Ours: see `outbound::tls`.
        Error::General(message) => message,
        _ => "TLS failed",
    };
    reason.to_owned()
}
