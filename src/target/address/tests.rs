//! Tests of the verdict on addresses: both sides of every block, exceptions, embeddings.

use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn opening(networks: &[&str]) -> OutboundPolicy {
    let allow_networks = networks.iter().map(|text| text.parse().expect("a network")).collect();
    OutboundPolicy { allow_networks, allow_http: false }
}

const PUBLIC: &[&str] = &[
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "168.63.129.15",
    "2606:4700::1111",
    "2a00:1450:4001::8",
    "2001:200::1",
    "2001:4860:4860::8888",
    "64:ff9b::101:101",
    "2606:4700::5efe:1.1.1.1",
];

const REFUSED: &[&str] = &[
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.255",
    "169.254.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.170",
    "192.0.2.1",
    "192.31.196.1",
    "192.52.193.1",
    "192.88.99.1",
    "192.168.0.1",
    "192.175.48.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "100.100.100.200",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:1.1.1.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b::168.63.129.16",
    "64:ff9b:1::1",
    "100::1",
    "100:0:0:1::1",
    "2001::1",
    "2001:0:4136:e378::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:1ff::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:101:101::1",
    "2620:4f:8000::1",
    "3fff::1",
    "3fff:fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "2606:4700::5efe:127.0.0.1",
    "2606:4700::200:5efe:10.0.0.1",
];

#[test]
fn only_public_addresses_are_reachable_by_default() {
    let policy = OutboundPolicy::default();
    for text in PUBLIC {
        assert!(is_reachable(ip(text), &policy), "{text}");
        assert!(!is_reachable_by(Transport::Http, ip(text), &policy), "{text}");
    }
    for text in REFUSED {
        assert!(!is_reachable(ip(text), &policy), "{text}");
    }
}

#[test]
fn an_ipv4_network_does_not_open_an_ipv6_spelling() {
    let policy = opening(&["0.0.0.0/0"]);
    assert!(is_reachable(ip("127.0.0.1"), &policy));
    for text in ["::ffff:127.0.0.1", "::7f00:1", "64:ff9b::7f00:1", "2002:7f00:1::", "::1"] {
        assert!(!is_reachable(ip(text), &policy), "{text}");
    }
    assert!(is_reachable(ip("::ffff:127.0.0.1"), &opening(&["::ffff:0:0/96"])));
}

#[test]
fn metadata_opens_only_by_its_own_address() {
    let wide = opening(&["0.0.0.0/0", "::/0", "169.254.169.252/30", "fd00:ec2::254/127"]);
    for address in METADATA {
        assert!(!is_reachable(address, &wide), "{address}");
        let own = OutboundPolicy { allow_networks: vec![IpNet::from(address)], allow_http: false };
        assert!(is_reachable(address, &own), "{address}");
    }
    for text in ["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::a83f:8110"] {
        assert!(!is_reachable(ip(text), &wide), "{text}");
    }
    assert!(is_reachable(ip("fd00:ec2::253"), &opening(&["fd00:ec2::/32"])));
}

#[test]
fn http_reaches_the_opened_networks_only() {
    let policy = opening(&["127.0.0.0/8"]);
    assert!(is_reachable_by(Transport::Http, ip("127.0.0.1"), &policy));
    assert!(!is_reachable_by(Transport::Http, ip("1.1.1.1"), &policy));
    assert!(is_reachable_by(Transport::Https, ip("1.1.1.1"), &policy));
    let policy = OutboundPolicy { allow_http: true, ..policy };
    assert!(is_reachable_by(Transport::Http, ip("1.1.1.1"), &policy));
    assert!(!is_reachable_by(Transport::Http, ip("10.0.0.1"), &policy));
}

proptest! {
    #[test]
    fn std_never_finds_a_reachable_ipv4_address_private(bits in any::<u32>()) {
        let address = Ipv4Addr::from(bits);
        if is_reachable(IpAddr::V4(address), &OutboundPolicy::default()) {
            prop_assert!(!address.is_private() && !address.is_loopback() && !address.is_link_local());
            prop_assert!(!address.is_multicast() && !address.is_broadcast() && !address.is_documentation());
            prop_assert!(!address.is_unspecified());
        }
    }

    #[test]
    fn an_ipv6_address_is_reachable_within_2000_3_or_nat64_only(bits in any::<u128>()) {
        let address = Ipv6Addr::from(bits);
        if is_reachable(IpAddr::V6(address), &OutboundPolicy::default()) {
            prop_assert!(address.segments()[0] & 0xe000 == 0x2000 || NAT64.contains(&address));
        }
    }

    #[test]
    fn a_refused_ipv4_address_is_refused_inside_ipv6(
        index in 0..IPV4_REFUSED.len(), host in any::<u32>(), prefix in any::<u64>(),
    ) {
        let block = IPV4_REFUSED[index];
        let inner = u32::from(block.network()) | host & u32::from(block.hostmask());
        let policy = opening(&["0.0.0.0/0"]);
        let nat64 = 0x0064_ff9b_u128 << 96;
        let isatap = u128::from(prefix) << 64 | 0x5efe << 32;
        let six_to_four = 0x2002_u128 << 112 | u128::from(inner) << 80;
        let low = u128::from(inner);
        for bits in [low, 0xffff << 32 | low, 0xffff << 48 | low, nat64 | low, isatap | low, six_to_four] {
            let address = IpAddr::V6(Ipv6Addr::from(bits));
            prop_assert!(!is_reachable(address, &policy), "{}", address);
        }
    }
}
