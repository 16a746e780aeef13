//! Tests of the verdict on a URL's text: spellings that have fooled others, names, ports, schemes, exceptions.

use proptest::prelude::*;

use super::Refusal as R;
use super::*;

fn opening(networks: &[&str]) -> OutboundPolicy {
    let allow_networks = networks.iter().map(|text| text.parse().expect("a network")).collect();
    OutboundPolicy { allow_networks, allow_http: false }
}

fn judge(raw: &str) -> Option<Refusal> {
    parse_target(raw, &OutboundPolicy::default()).err()
}

#[test]
fn a_public_https_url_is_taken_in_canonical_form() {
    let cases = [
        ("https://example.com", "https://example.com/", "https://example.com:443"),
        (
            "HTTPS://EXAMPLE.com:443/a/../b?q=1%20x",
            "https://example.com/b?q=1%20x",
            "https://example.com:443",
        ),
        (
            "https://hooks.example.com:8443/x@y:z",
            "https://hooks.example.com:8443/x@y:z",
            "https://hooks.example.com:8443",
        ),
        ("https://1.1.1.1/", "https://1.1.1.1/", "https://1.1.1.1:443"),
        ("https://[2606:4700:0::1111]/", "https://[2606:4700::1111]/", "https://[2606:4700::1111]:443"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/", "https://xn--bcher-kva.example:443"),
        ("https://a_b.example.com/ä", "https://a_b.example.com/%C3%A4", "https://a_b.example.com:443"),
        ("https://example.com:/x", "https://example.com/x", "https://example.com:443"),
        (
            "https://localhost.example.com/",
            "https://localhost.example.com/",
            "https://localhost.example.com:443",
        ),
        ("https://x.notlocal/?", "https://x.notlocal/?", "https://x.notlocal:443"),
    ];
    for (raw, canonical, origin) in cases {
        let target = parse_target(raw, &OutboundPolicy::default()).expect(raw);
        assert_eq!((target.as_str(), target.origin().as_str()), (canonical, origin));
        assert_eq!(parse_target(canonical, &OutboundPolicy::default()).as_ref(), Ok(&target));
    }
}

#[test]
fn faults_of_the_text_are_named() {
    let long = format!("https://example.com/{}", "a".repeat(2_030));
    let grows = format!("https://example.com/{}", "ä".repeat(1_000));
    let cases: &[(&str, R)] = &[
        ("", R::NotAUrl),
        ("example.com", R::NotAUrl),
        ("//example.com/", R::NotAUrl),
        ("https:example.com", R::NotAUrl),
        ("https:/example.com", R::NotAUrl),
        ("https://", R::NotAUrl),
        ("https:///example.com", R::NotAUrl),
        ("https://?x", R::NotAUrl),
        ("https://example.com:99999/", R::NotAUrl),
        ("https://example.com:x/", R::NotAUrl),
        ("https://exa<mple.com/", R::NotAUrl),
        ("https://[::1", R::NotAUrl),
        ("https://[fe80::1%25eth0]/", R::NotAUrl),
        ("https://1.2.3.4.5/", R::NotAUrl),
        ("https://256.1.1.1/", R::NotAUrl),
        (&long, R::TooLong),
        (&grows, R::TooLong),
        ("ftp://example.com/", R::Scheme),
        ("file:///etc/passwd", R::Scheme),
        ("gopher://127.0.0.1:6379/_", R::Scheme),
        ("javascript://example.com/", R::Scheme),
        ("unix:///var/run/docker.sock", R::Scheme),
        ("http://example.com/", R::Scheme),
        ("http://1.1.1.1/", R::Scheme),
        ("https://user:password@example.com/", R::Credentials),
        ("https://user@example.com/", R::Credentials),
        ("https://@example.com/", R::Credentials),
        ("https://example.com@127.0.0.1/", R::Credentials),
        ("https://example.com/#part", R::Fragment),
        ("https://example.com/#", R::Fragment),
        ("https://example.com#@127.0.0.1/", R::Fragment),
        (" https://example.com/", R::ForbiddenCharacter),
        ("https://example.com/ ", R::ForbiddenCharacter),
        ("https://exam\tple.com/", R::ForbiddenCharacter),
        ("https://example.com/\r\nHost: x", R::ForbiddenCharacter),
        ("ht\ntps://example.com/", R::ForbiddenCharacter),
        ("https://example.com\\@127.0.0.1/", R::ForbiddenCharacter),
        ("https:\\\\127.0.0.1/", R::ForbiddenCharacter),
        ("https://example.com/\u{0}", R::ForbiddenCharacter),
        ("https://example.com/\u{7f}", R::ForbiddenCharacter),
        ("https://example.com/\u{85}", R::ForbiddenCharacter),
        ("https://127.0\u{ad}.0.1/", R::ForbiddenCharacter),
        ("https://local\u{200b}host/", R::ForbiddenCharacter),
        ("https://example.com/\u{202e}", R::ForbiddenCharacter),
        ("\u{feff}https://example.com/", R::ForbiddenCharacter),
    ];
    for (raw, expected) in cases {
        assert_eq!(judge(raw), Some(*expected), "{raw:?}");
    }
}

/// Every one of these reaches this machine, a private network or another protocol somewhere.
const NOT_ALLOWED_URLS: &[&str] = &[
    "https://127.0.0.1/",
    "http://127.0.0.1/",
    "https://127.0.0.1:3000/",
    "https://127.1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.1/",
    "https://0177.0.0.1/",
    "https://0/",
    "https://0.0.0.0/",
    "https://017700000001/",
    "https://127.0.0.1./",
    "https://127.000.000.001/",
    "https://1.1.1.01/",
    "https://1.1.257/",
    "https://16843009/",
    "https://①②⑦.0.0.1/",
    "https://１２７.０.０.１/",
    "https://127。0。0。1/",
    "https://%31%32%37.0.0.1/",
    "https://127.0.0.%31/",
    "https://ex%61mple.com/",
    "https://ｅｘａｍｐｌｅ.com/",
    "https://ⓔⓧⓐⓜⓟⓛⓔ.com/",
    "https://localhost/",
    "https://LOCALHOST/",
    "https://localhost./",
    "https://ｌｏｃａｌｈｏｓｔ/",
    "https://foo.localhost/",
    "https://localhost.localdomain/",
    "https://printer.local/",
    "https://metadata.google.internal/",
    "https://router.home.arpa/",
    "https://db.default.svc/",
    "https://db.default.svc.cluster.local/",
    "https://x.onion/",
    "https://x.invalid/",
    "https://nas.lan/",
    "https://intranet/",
    "https://postgres/",
    "https://example.com./",
    "https://example..com/",
    "https://.example.com/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://168.63.129.16/",
    "https://100.100.100.200/",
    "https://[::1]/",
    "https://[::]/",
    "https://[::ffff:127.0.0.1]/",
    "http://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[0:0:0:0:0:ffff:7f00:1]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::127.0.0.1]/",
    "https://[2002:7f00:1::]/",
    "https://[fd00:ec2::254]/",
    "https://[fe80::1]/",
    "https://[fc00::1]/",
    "https://[ff02::1]/",
    "https://example.com:0/",
    "https://example.com:22/",
    "https://example.com:25/",
    "https://example.com:6667/",
    "https://example.com:10080/",
    "https://1.1.1.1:6000/",
];

#[test]
fn every_place_that_may_not_be_called_is_refused_in_one_sentence() {
    for raw in NOT_ALLOWED_URLS {
        let refusal = judge(raw).expect(raw);
        assert_eq!(refusal, R::NotAllowed, "{raw}");
        assert_eq!(refusal.to_string(), NOT_ALLOWED);
    }
    for odd in ["{", "}", "\"", "`", "$", "!", "'", ",", ";", "*", "(", "=", "&", "+", "~"] {
        assert!(judge(&format!("https://exa{odd}mple.com/")).is_some(), "{odd}");
    }
    let label = "a".repeat(64);
    assert!(judge(&format!("https://{label}.com/")).is_some());
    assert!(judge(&format!("https://{}com/", "a.".repeat(126))).is_some());
}

#[test]
fn opened_networks_are_reached_by_http_and_by_any_name() {
    let policy = opening(&["127.0.0.0/8", "::1/128"]);
    let judge = |raw: &str| parse_target(raw, &policy).err();
    for raw in [
        "http://127.0.0.1:3000/",
        "https://127.0.0.2/",
        "http://[::1]:3000/",
        "http://localhost:3000/hook",
        "http://receiver:9000/",
        "https://receiver.local/",
        "http://example.com/",
        "https://1.1.1.1/",
    ] {
        assert_eq!(judge(raw), None, "{raw}");
    }
    for raw in [
        "http://10.0.0.1/",
        "http://[::ffff:127.0.0.1]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://0.0.0.0/",
        "http://localhost:22/",
        "http://localhost./",
        "https://169.254.169.254/",
    ] {
        assert_eq!(judge(raw), Some(R::NotAllowed), "{raw}");
    }
    assert_eq!(judge("http://1.1.1.1/"), Some(R::Scheme));
    assert_eq!(judge("http://user@127.0.0.1/"), Some(R::Credentials));
}

#[test]
fn allow_http_opens_http_to_public_places_only() {
    let policy = OutboundPolicy { allow_networks: Vec::new(), allow_http: true };
    for raw in ["http://example.com/", "http://1.1.1.1:8080/"] {
        assert!(parse_target(raw, &policy).is_ok(), "{raw}");
    }
    for raw in ["http://localhost/", "http://127.0.0.1/", "http://10.0.0.1/", "http://receiver:9000/"] {
        assert_eq!(parse_target(raw, &policy), Err(R::NotAllowed), "{raw}");
    }
}

#[test]
fn a_target_is_judged_again_under_the_policy_of_the_day() {
    let target = parse_target("http://127.0.0.1:3000/", &opening(&["127.0.0.0/8"])).expect("opened");
    assert_eq!(target.judge(&OutboundPolicy::default()), Err(R::NotAllowed));
}

#[test]
fn debug_hides_path_and_query() {
    let target =
        parse_target("https://example.com/T0/secret?token=x", &OutboundPolicy::default()).expect("public");
    assert_eq!(format!("{target:?}"), "TargetUrl(https://example.com:443/…)");
}

#[test]
fn the_blocked_ports_are_sorted() {
    assert!(BLOCKED_PORTS.is_sorted_by(|a, b| a < b));
}

proptest! {
    #[test]
    fn no_text_panics_and_the_canonical_form_is_stable(raw in "(https?://)?[\\PC\\x00-\\x20]{0,40}") {
        for policy in [OutboundPolicy::default(), opening(&["127.0.0.0/8"])] {
            if let Ok(target) = parse_target(&raw, &policy) {
                prop_assert_eq!(parse_target(target.as_str(), &policy), Ok(target));
            }
        }
    }

    #[test]
    fn no_spelling_of_a_loopback_address_passes(
        low in 0u32..0x0100_0000,
        form in 0usize..6,
        scheme in prop::sample::select(vec!["http", "https"]),
    ) {
        let bits = 0x7f00_0000 | low;
        let [a, b, c, d] = bits.to_be_bytes();
        let host = match form {
            0 => format!("{a}.{b}.{c}.{d}"),
            1 => format!("{bits}"),
            2 => format!("{bits:#x}"),
            3 => format!("0{bits:o}"),
            4 => format!("{a:#x}.{b:#o}.{}", u32::from(c) << 8 | u32::from(d)).replace("0o", "0"),
            _ => format!("[::ffff:{a}.{b}.{c}.{d}]"),
        };
        prop_assert_eq!(judge(&format!("{scheme}://{host}/")), Some(R::NotAllowed));
    }

    #[test]
    fn a_plain_name_passes_whatever_its_path(
        name in "[a-z][a-z0-9]{0,10}(\\.[a-z][a-z0-9]{0,10}){0,3}\\.example",
        path in "[a-zA-Z0-9/_.~%-]{0,40}",
    ) {
        prop_assert_eq!(judge(&format!("https://{name}/{path}")), None);
    }
}
