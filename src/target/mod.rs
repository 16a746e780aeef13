//! [pure] Which URLs may be called: the verdict on the text of a URL; `address` judges addresses, `headers` what a user
//! may add to a request.
//!
//! Called at registration (`jobs`) and again by `outbound` before each send. Resolves nothing: a name passes here and its addresses are judged when they are known, by `resolver`.
//!
//! The raw text is judged as well as what it parses to, because parsers differ: whatever a reader could take for
//! another host (odd spellings of IPv4, escapes, look-alike characters, credentials, backslashes) is refused.
//!
//! Invariants: a [`TargetUrl`] was judged under some policy and is in canonical form, which is judged alike; and what
//! is refused for where it points is refused in one and the same sentence, so that nothing can be learned from it.

use std::fmt;
use std::net::IpAddr;

use url::{Host, Url};

pub mod address;
pub mod headers;

pub use address::{OutboundPolicy, Transport, is_reachable, is_reachable_by};
pub use headers::{HeaderFault, HeaderFaultKind, HeaderUse, parse_custom_headers};

/// The longest URL in bytes, as received and in canonical form.
const URL_LEN_MAX: usize = 2_048;
/// The longest name in DNS, in its textual form (RFC 1035, section 2.3.4).
const NAME_LEN_MAX: usize = 253;
/// The longest label of a name (RFC 1035, section 2.3.4).
const LABEL_LEN_MAX: usize = 63;

/// What a user is told of every target that may not be called, whatever the reason and whatever stands there.
pub const NOT_ALLOWED: &str = "this address may not be called; use a public https URL \
     (the operator can open networks with RINGBACK_ALLOW_NETWORKS)";

/// A URL that may be called as far as its text says. Made by [`parse_target`] only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TargetUrl {
    url: Url,
}

/// Judges the text of a URL: its form, scheme, port and name, and its address if it is a literal.
///
/// # Errors
/// See [`Refusal`]; each displays as a sentence for the sender.
pub fn parse_target(raw: &str, policy: &OutboundPolicy) -> Result<TargetUrl, Refusal> {
    if raw.len() > URL_LEN_MAX {
        return Err(Refusal::TooLong);
    }
    if raw.chars().any(is_forbidden) {
        return Err(Refusal::ForbiddenCharacter);
    }
    let authority = raw_authority(raw)?;
    if authority.contains('@') {
        return Err(Refusal::Credentials);
    }
    if raw.contains('#') {
        return Err(Refusal::Fragment);
    }
    let url = Url::parse(raw).map_err(|_| Refusal::NotAUrl)?;
    if url.as_str().len() > URL_LEN_MAX {
        return Err(Refusal::TooLong);
    }
    // The client reads URLs by another parser, which must not be surprised.
    http::Uri::try_from(url.as_str()).map_err(|_| Refusal::NotAUrl)?;
    if !is_spelled_plainly(raw_host(authority), &url) {
        return Err(Refusal::NotAllowed);
    }
    let target = TargetUrl { url };
    target.judge(policy)?;
    Ok(target)
}

impl TargetUrl {
    /// The canonical URL. May hold secrets in its path and query: not for logs.
    pub fn as_str(&self) -> &str {
        self.url.as_str()
    }

    /// `https://host:port`, the port always written out. Free of secrets.
    pub fn origin(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        format!("{}://{host}:{}", self.url.scheme(), self.url.port_or_known_default().unwrap_or_default())
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// How a request to it travels.
    pub fn transport(&self) -> Transport {
        if self.url.scheme() == "http" { Transport::Http } else { Transport::Https }
    }

    /// Judges host, port and scheme under a policy, which may be another one than at registration.
    pub(super) fn judge(&self, policy: &OutboundPolicy) -> Result<(), Refusal> {
        if self.url.port_or_known_default().is_none_or(|port| BLOCKED_PORTS.binary_search(&port).is_ok()) {
            return Err(Refusal::NotAllowed);
        }
        let opens_any = !policy.allow_networks.is_empty();
        match self.literal() {
            Some(ip) if is_reachable_by(self.transport(), ip, policy) => Ok(()),
            // The right advice for a public address in the clear.
            Some(ip) if is_reachable_by(Transport::Https, ip, policy) => Err(Refusal::Scheme),
            Some(_) => Err(Refusal::NotAllowed),
            None if !is_well_formed_name(self.name()) => Err(Refusal::NotAllowed),
            None if opens_any => Ok(()),
            None if is_internal_name(self.name()) => Err(Refusal::NotAllowed),
            None if self.transport() == Transport::Http && !policy.allow_http => Err(Refusal::Scheme),
            None => Ok(()),
        }
    }

    fn literal(&self) -> Option<IpAddr> {
        match self.url.host() {
            Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
            Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
            Some(Host::Domain(_)) | None => None,
        }
    }

    fn name(&self) -> &str {
        self.url.domain().unwrap_or_default()
    }
}

impl fmt::Display for TargetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Shows the origin only: paths and queries of webhook URLs often are secrets.
impl fmt::Debug for TargetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TargetUrl({}/…)", self.origin())
    }
}

/// Why a URL is refused. All but the last are faults of the text, which tell nothing about where it points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Over 2,048 bytes, as given or in canonical form.
    #[error("the URL is longer than 2,048 bytes")]
    TooLong,
    /// Something that some readers drop or turn into something else.
    #[error("spaces, control characters, backslashes and invisible characters are not allowed in a URL")]
    ForbiddenCharacter,
    /// Neither https nor an http that this policy allows.
    #[error("the URL must begin with https://")]
    Scheme,
    /// A user or password before the host.
    #[error("a URL with a user or password is not allowed; put credentials into a header")]
    Credentials,
    /// A fragment, which is never sent.
    #[error("a URL with a fragment (#…) is not allowed")]
    Fragment,
    /// Not a URL at all.
    #[error("this is not a valid URL")]
    NotAUrl,
    /// The host, its spelling, its address or its port.
    #[error("{NOT_ALLOWED}")]
    NotAllowed,
}

/// What lies between `scheme://` and the path, in the text as received.
fn raw_authority(raw: &str) -> Result<&str, Refusal> {
    let (scheme, rest) = raw.split_once("://").ok_or(Refusal::NotAUrl)?;
    if !scheme.eq_ignore_ascii_case("https") && !scheme.eq_ignore_ascii_case("http") {
        return Err(Refusal::Scheme);
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() { Err(Refusal::NotAUrl) } else { Ok(authority) }
}

/// The authority without its port.
fn raw_host(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => authority,
    }
}

/// Whether the host was written as it is read: IPv4 in dotted decimal, no escapes, no look-alikes of ASCII letters.
fn is_spelled_plainly(raw_host: &str, url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => raw_host == ip.to_string(),
        Some(Host::Ipv6(_)) => raw_host.starts_with('[') && raw_host.is_ascii(),
        Some(Host::Domain(name)) if raw_host.is_ascii() => raw_host.eq_ignore_ascii_case(name),
        // A name beyond ASCII stays beyond ASCII; else it only looked like one and is read as another.
        Some(Host::Domain(name)) => !raw_host.contains('%') && name.split('.').any(|l| l.starts_with("xn--")),
        None => false,
    }
}

fn is_well_formed_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LABEL_LEN_MAX).contains(&label.len())
            && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    name.len() <= NAME_LEN_MAX && name.split('.').all(is_label)
}

/// Names that mean something on the inside of a network only: single labels and the zones below.
fn is_internal_name(name: &str) -> bool {
    !name.contains('.')
        || INTERNAL_ZONES.iter().any(|zone| name.strip_suffix(zone).is_some_and(|rest| rest.ends_with('.')))
}

/// Special-use names (RFC 6761, 6762, 7686, 8375, ICANN's `internal`), Kubernetes', and what home and office networks
/// call themselves.
const INTERNAL_ZONES: [&str; 14] = [
    "localhost",
    "localdomain",
    "local",
    "internal",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "home.arpa",
    "svc",
    "cluster.local",
    "onion",
    "invalid",
];

/// Characters that some reader drops, trims or takes for another: C0, space, DEL, C1, backslash, soft hyphen, joiners,
/// zero-width and bidirectional controls, byte order mark.
fn is_forbidden(character: char) -> bool {
    matches!(
        character,
        '\0'..=' ' | '\\' | '\u{7f}'..='\u{a0}' | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}'
            | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{ffff}' | '\u{e0000}'..='\u{e0fff}'
    )
}

/// The ports of other protocols that browsers do not send HTTP to (Fetch standard, "port blocking"), sorted.
const BLOCKED_PORTS: [u16; 83] = [
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103,
    104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514,
    515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723,
    2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
];

#[cfg(test)]
mod tests;
