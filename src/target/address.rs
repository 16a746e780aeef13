//! Which addresses may be reached, `[pure]`: the verdict on one IP address.
//!
//! Called by `outbound::target` for literals in a URL, by `outbound::resolver` for every address that a name resolves
//! to, and by `outbound` for the peer of an answer. Resolves nothing and knows no URL.
//!
//! IPv4 is a deny-list (every block of IANA's special-purpose registry, multicast, cloud metadata), IPv6 an allow-list
//! (global unicast less its special blocks). Exceptions come from `RINGBACK_ALLOW_NETWORKS` only, per family.
//!
//! Invariant: an IPv4 exception never covers an IPv6 spelling of the same host, and no network but its own /32 or
//! /128 opens a cloud metadata address, in any spelling.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What the operator opened beyond public https.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutboundPolicy {
    /// `RINGBACK_ALLOW_NETWORKS`: reachable although not public, by http as well; lifts the rule on names.
    pub allow_networks: Vec<IpNet>,
    /// `RINGBACK_ALLOW_HTTP`: http to public addresses too.
    pub allow_http: bool,
}

impl OutboundPolicy {
    /// Whether the operator's networks hold this address. Metadata addresses need an entry of their own.
    fn opens(&self, ip: IpAddr) -> bool {
        self.allow_networks.iter().any(|network| {
            let is_host = network.prefix_len() == network.max_prefix_len();
            network.contains(&ip) && (is_host || !is_metadata(ip))
        })
    }
}

/// How a request travels: what is fine by TLS may not be fine in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `http://`
    Http,
    /// `https://`
    Https,
}

/// Whether this address may be called at all.
pub fn is_reachable(ip: IpAddr, policy: &OutboundPolicy) -> bool {
    policy.opens(ip) || is_public(ip)
}

/// Whether this address may be called by this transport: http reaches the operator's networks only, unless
/// `allow_http`.
pub fn is_reachable_by(transport: Transport, ip: IpAddr, policy: &OutboundPolicy) -> bool {
    match transport {
        Transport::Http if !policy.allow_http => policy.opens(ip),
        Transport::Http | Transport::Https => is_reachable(ip, policy),
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix_len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_len)
}

const fn v6(segments: [u16; 3], prefix_len: u8) -> Ipv6Net {
    let [a, b, c] = segments;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix_len)
}

/// IANA IPv4 Special-Purpose Address Registry (RFC 6890 and its updates), and multicast.
const IPV4_REFUSED: [Ipv4Net; 18] = [
    v4(0, 0, 0, 0, 8),       // this network, RFC 791
    v4(10, 0, 0, 0, 8),      // private use, RFC 1918
    v4(100, 64, 0, 0, 10),   // shared address space, RFC 6598
    v4(127, 0, 0, 0, 8),     // loopback, RFC 1122
    v4(169, 254, 0, 0, 16),  // link-local, RFC 3927
    v4(172, 16, 0, 0, 12),   // private use, RFC 1918
    v4(192, 0, 0, 0, 24),    // IETF protocol assignments, RFC 6890
    v4(192, 0, 2, 0, 24),    // documentation, RFC 5737
    v4(192, 31, 196, 0, 24), // AS112, RFC 7535
    v4(192, 52, 193, 0, 24), // AMT, RFC 7450
    v4(192, 88, 99, 0, 24),  // 6to4 relay anycast, RFC 7526
    v4(192, 168, 0, 0, 16),  // private use, RFC 1918
    v4(192, 175, 48, 0, 24), // AS112, RFC 7534
    v4(198, 18, 0, 0, 15),   // benchmarking, RFC 2544
    v4(198, 51, 100, 0, 24), // documentation, RFC 5737
    v4(203, 0, 113, 0, 24),  // documentation, RFC 5737
    v4(224, 0, 0, 0, 4),     // multicast, RFC 5771
    v4(240, 0, 0, 0, 4),     // reserved, RFC 1112, and broadcast, RFC 8190
];

/// The one block that IANA has given out for global unicast (RFC 4291, section 2.4).
const IPV6_GLOBAL_UNICAST: Ipv6Net = v6([0x2000, 0, 0], 3);

/// IANA IPv6 Special-Purpose Address Registry: the blocks within global unicast.
const IPV6_REFUSED: [Ipv6Net; 5] = [
    v6([0x2001, 0, 0], 23), // IETF protocol assignments: Teredo, ORCHID, benchmarking, RFC 2928
    v6([0x2001, 0xdb8, 0], 32), // documentation, RFC 3849
    v6([0x2002, 0, 0], 16), // 6to4, RFC 3056
    v6([0x2620, 0x4f, 0x8000], 48), // AS112, RFC 7534
    v6([0x3fff, 0, 0], 20), // documentation, RFC 9637
];

/// The well-known prefix of NAT64 (RFC 6052): on such hosts every IPv4-only receiver resolves into it.
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0], 96);

/// Where clouds serve credentials to whoever asks.
const METADATA: [IpAddr; 6] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), // AWS, Azure, Google, most others
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),   // AWS container credentials
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),   // Azure WireServer, in public address space
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), // Alibaba
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)), // AWS
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)), // Google
];

fn is_metadata(ip: IpAddr) -> bool {
    METADATA.contains(&ip)
        || match ip {
            IpAddr::V4(_) => false,
            IpAddr::V6(ip) => embedded_v4(ip).is_some_and(|inner| METADATA.contains(&IpAddr::V4(inner))),
        }
}

fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    !METADATA.contains(&IpAddr::V4(ip)) && !IPV4_REFUSED.iter().any(|block| block.contains(&ip))
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    if NAT64.contains(&ip) {
        return is_public_v4(last_32_bits(ip));
    }
    IPV6_GLOBAL_UNICAST.contains(&ip)
        && !IPV6_REFUSED.iter().any(|block| block.contains(&ip))
        && isatap_v4(ip).is_none_or(is_public_v4)
}

/// The IPv4 address inside an IPv6 one, in each of the ways that some host or router translates.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let translated = match ip.segments() {
        // Compatible and mapped (RFC 4291, section 2.5.5), translated (RFC 2765), NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            Some(last_32_bits(ip))
        }
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))),
        _ => None,
    };
    translated.or_else(|| isatap_v4(ip))
}

/// ISATAP (RFC 5214): an interface id of `::0:5efe:a.b.c.d` or `::200:5efe:a.b.c.d`.
fn isatap_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    matches!(ip.segments(), [_, _, _, _, 0 | 0x200, 0x5efe, _, _]).then(|| last_32_bits(ip))
}

fn last_32_bits(ip: Ipv6Addr) -> Ipv4Addr {
    Ipv4Addr::from(u128::from(ip) as u32)
}

#[cfg(test)]
mod tests;
