//! Tests of signing: the published vectors, RFC 4231, and the official library as an independent reader.

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::*;

const SPEC_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SPEC_ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const SPEC_TIME: i64 = 1_614_265_330;
const SPEC_BODY: &[u8] = br#"{"test": 2432232314}"#;
const SPEC_SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

fn spec_secret() -> SigningSecret {
    SigningSecret::parse(SPEC_SECRET).expect("a good secret")
}

fn check(id: Option<&str>, timestamp: Option<&str>, signature: Option<&str>) -> Result<(), VerifyError> {
    verify(&spec_secret(), SignedHeaders { id, timestamp, signature }, SPEC_BODY, SPEC_TIME + 10, 300)
}

/// The official library answers for the expected value: it computes the same one from the same message.
#[test]
fn the_message_of_the_standard_is_signed_as_its_library_signs_it() {
    let library = standardwebhooks::Webhook::new(SPEC_SECRET).expect("a good secret");
    let expected = library.sign(SPEC_ID, SPEC_TIME, SPEC_BODY).expect("signs");
    let ours = sign(&[spec_secret().into()], SPEC_ID, SPEC_TIME, SPEC_BODY);
    assert_eq!(ours, expected);
    assert_eq!(ours, SPEC_SIGNATURE);
    assert_eq!(ours.len(), TOKEN_LEN);
}

/// RFC 4231, section 4: test cases 1 to 4, 6 and 7 through the key state that signing uses.
#[test]
fn the_hmac_is_the_one_of_rfc_4231() {
    let cases: [(Vec<u8>, Vec<u8>, &str); 6] = [
        (
            vec![0x0b; 20],
            b"Hi There".to_vec(),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
        ),
        (
            b"Jefe".to_vec(),
            b"what do ya want for nothing?".to_vec(),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        (vec![0xaa; 20], vec![0xdd; 50], "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
        (
            (1..=25).collect(),
            vec![0xcd; 50],
            "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
        ),
        (
            vec![0xaa; 131],
            b"Test Using Larger Than Block-Size Key - Hash Key First".to_vec(),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
        ),
        (
            vec![0xaa; 131],
            b"This is a test using a larger than block-size key and a larger than block-size data. \
              The key needs to be hashed before being used by the HMAC algorithm."
                .to_vec(),
            "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
        ),
    ];
    for (key, data, expected) in cases {
        let mut mac = SigningSecret::keyed(Zeroizing::new(key)).keyed.clone();
        mac.update(&data);
        let hex: String = mac.finalize().into_bytes().iter().fold(String::new(), |mut hex, byte| {
            use std::fmt::Write as _;
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        assert_eq!(hex, expected);
    }
}

#[test]
fn a_secret_is_read_strictly_shown_on_purpose_and_never_by_debug() {
    assert_eq!(spec_secret().to_string(), SPEC_SECRET);
    assert_eq!(format!("{:?}", spec_secret()), "SigningSecret");
    let encoded = |len| format!("whsec_{}", BASE64.encode(vec![7; len]));
    for len in [24, 32, 64] {
        assert!(SigningSecret::parse(&encoded(len)).is_ok());
    }
    let refused = [
        (encoded(23), SecretError::Length),
        (encoded(65), SecretError::Length),
        ("whsec_".to_owned(), SecretError::Length),
        (encoded(25).trim_end_matches('=').to_owned(), SecretError::Base64),
        (format!("{SPEC_SECRET}\n"), SecretError::Base64),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS_".to_owned(), SecretError::Base64),
        (SPEC_SECRET.to_uppercase(), SecretError::Prefix),
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(), SecretError::Prefix),
        ("whpk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(), SecretError::Prefix),
    ];
    for (text, expected) in refused {
        assert_eq!(SigningSecret::parse(&text).map(|_| ()), Err(expected), "{text}");
    }
    assert_eq!(SigningSecret::from_random([9; 32]).as_bytes(), [9; 32]);
}

#[test]
fn a_good_message_passes_among_other_tokens() {
    let time = SPEC_TIME.to_string();
    assert_eq!(check(Some(SPEC_ID), Some(&time), Some(SPEC_SIGNATURE)), Ok(()));
    let other = sign(&[SigningSecret::from_random([1; 32]).into()], SPEC_ID, SPEC_TIME, SPEC_BODY);
    for header in [
        format!("{other} {SPEC_SIGNATURE}"),
        format!("{SPEC_SIGNATURE} v1a,AAAA"),
        format!("v1a,AAAA {SPEC_SIGNATURE}"),
        format!("nonsense v1,? {SPEC_SIGNATURE}"),
    ] {
        assert_eq!(check(Some(SPEC_ID), Some(&time), Some(&header)), Ok(()), "{header}");
    }
}

#[test]
fn every_doubt_is_an_error() {
    let time = SPEC_TIME.to_string();
    let (id, at, signature) = (Some(SPEC_ID), Some(time.as_str()), Some(SPEC_SIGNATURE));
    assert_eq!(check(None, at, signature), Err(VerifyError::Missing("webhook-id")));
    assert_eq!(check(id, None, signature), Err(VerifyError::Missing("webhook-timestamp")));
    assert_eq!(check(id, at, None), Err(VerifyError::Missing("webhook-signature")));
    assert_eq!(check(Some(""), at, signature), Err(VerifyError::Malformed("webhook-id")));
    for odd in ["", "x", "1614265330.0", "+1614265330", "01614265330", " 1614265330", "-1", "9e9", "٣"] {
        assert_eq!(
            check(id, Some(odd), signature),
            Err(VerifyError::Malformed("webhook-timestamp")),
            "{odd}"
        );
    }
    for odd in ["", "v1", "v1,???", "g0hM9SsE", "v1,AAA", " "] {
        assert_eq!(check(id, at, Some(odd)), Err(VerifyError::Malformed("webhook-signature")), "{odd:?}");
    }
    // An empty or shortened token must not pass as a prefix of the right one (RUSTSEC-2024-0010).
    let prefix = format!("v1,{}", BASE64.encode(&BASE64.decode(&SPEC_SIGNATURE[3..]).expect("base64")[..31]));
    for none in ["v1,", &prefix, "v2,AAAA", "V1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="] {
        assert_eq!(check(id, at, Some(none)), Err(VerifyError::NoMatch), "{none}");
    }
    assert_eq!(check(Some("msg_other"), at, signature), Err(VerifyError::NoMatch));
    let headers = SignedHeaders { id, timestamp: at, signature };
    let at_time = |now_s| verify(&spec_secret(), headers, SPEC_BODY, now_s, 300);
    assert_eq!(at_time(SPEC_TIME + 300), Ok(()));
    assert_eq!(at_time(SPEC_TIME + 301), Err(VerifyError::TooOld));
    assert_eq!(at_time(SPEC_TIME - 300), Ok(()));
    assert_eq!(at_time(SPEC_TIME - 301), Err(VerifyError::TooNew));
    assert_eq!(at_time(i64::MIN), Err(VerifyError::TooNew));
    assert_eq!(at_time(i64::MAX), Err(VerifyError::TooOld));
    assert_eq!(verify(&spec_secret(), headers, b"{}", SPEC_TIME, 300), Err(VerifyError::NoMatch));
}

#[test]
fn no_secret_signs_nothing() {
    assert_eq!(sign(&[], "evt_1", 0, b""), "");
}

/// The key, message and signature of the reference implementation of `v1a` (the Svix server's own test).
#[test]
fn the_message_of_the_standard_is_signed_with_ed25519_as_the_reference_signs_it() {
    let text =
        "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
    let key: SigningKey = text.parse().expect("a good key");
    assert_eq!(key.to_string(), text);
    assert_eq!(key.public_key().as_deref(), Some("whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="));
    assert_eq!(
        sign(&[key], SPEC_ID, SPEC_TIME, SPEC_BODY),
        "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
    );
}

#[test]
fn what_is_no_ed25519_key_is_refused() {
    let pair = Ed25519Key::from_random([7; 32]);
    let other = Ed25519Key::from_random([8; 32]);
    let seed_only = format!("whsk_{}", BASE64.encode([7; 32]));
    assert_eq!(Ed25519Key::parse(&seed_only).map(|key| key.to_string()).ok(), Some(pair.to_string()));
    let mut mixed = BASE64.decode(&pair.to_string()[5..]).expect("base64");
    mixed.truncate(32);
    mixed.extend(BASE64.decode(&other.public_key()[5..]).expect("base64"));
    for (text, error) in [
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(), SecretError::Prefix),
        ("whsk_%".to_owned(), SecretError::Base64),
        (format!("whsk_{}", BASE64.encode([7; 31])), SecretError::Key),
        (format!("whsk_{}", BASE64.encode([7; 33])), SecretError::Key),
        (format!("whsk_{}", BASE64.encode(&mixed)), SecretError::Key),
    ] {
        assert_eq!(Ed25519Key::parse(&text).err(), Some(error), "{text}");
    }
    assert!(!format!("{pair:?}").contains("whsk"));
}

#[test]
fn keys_of_both_kinds_sign_side_by_side() {
    let keys = [spec_secret().into(), SigningKey::from_random(SignatureKind::Ed25519, [1; 32])];
    let header = sign(&keys, SPEC_ID, SPEC_TIME, SPEC_BODY);
    let (hmac, ed25519) = header.split_once(' ').expect("two tokens");
    assert_eq!(hmac, SPEC_SIGNATURE);
    assert!(ed25519.starts_with("v1a,"));
    // A receiver that knows the shared secret passes the other token over.
    assert_eq!(check(Some(SPEC_ID), Some(&SPEC_TIME.to_string()), Some(&header)), Ok(()));
}

/// `cargo test --release signing::tests::speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed_of_a_typical_message() {
    let (secrets, body) = ([SigningKey::from(spec_secret())], vec![b'x'; 1024]);
    let rounds: u32 = 100_000;
    let start = std::time::Instant::now();
    for n in 0..rounds {
        std::hint::black_box(sign(&secrets, SPEC_ID, i64::from(n), std::hint::black_box(&body)));
    }
    println!("{:?}", start.elapsed() / rounds);
}

proptest! {
    #[test]
    fn what_we_sign_the_official_library_verifies(
        keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 24..=64), 1..4),
        id in "evt_[0-9a-z]{26}",
        body in "\\PC{0,300}",
        flipped in any::<prop::sample::Index>(),
    ) {
        let secrets: Vec<SigningSecret> =
            keys.into_iter().map(|key| SigningSecret::from_bytes(key).expect("a good length")).collect();
        let now_s = chrono::DateTime::<chrono::Utc>::from(std::time::UNIX_EPOCH + since_epoch()).timestamp();
        let signing: Vec<SigningKey> = secrets.iter().cloned().map(SigningKey::from).collect();
        let signature = sign(&signing, &id, now_s, body.as_bytes());
        prop_assert_eq!(signature.split(' ').count(), secrets.len());
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", HeaderValue::from_str(&id).expect("ascii"));
        headers.insert("webhook-timestamp", HeaderValue::from(now_s));
        headers.insert("webhook-signature", HeaderValue::from_str(&signature).expect("ascii"));
        let time = now_s.to_string();
        let signed = SignedHeaders { id: Some(&id), timestamp: Some(&time), signature: Some(&signature) };
        for secret in &secrets {
            let library = standardwebhooks::Webhook::new(&secret.to_string()).expect("a good secret");
            prop_assert!(library.verify(body.as_bytes(), &headers).is_ok());
            prop_assert_eq!(verify(secret, signed, body.as_bytes(), now_s, 0), Ok(()));
            if !body.is_empty() {
                let mut other = body.clone().into_bytes();
                other[flipped.index(body.len())] ^= 1;
                prop_assert_eq!(verify(secret, signed, &other, now_s, 0), Err(VerifyError::NoMatch));
            }
        }
    }

    #[test]
    fn what_we_sign_with_ed25519_another_implementation_verifies(
        seed: [u8; 32], id in "evt_[0-9a-z]{26}", at in 0i64..10_000_000_000, body in "\\PC{0,300}",
    ) {
        let key = SigningKey::from_random(SignatureKind::Ed25519, seed);
        let header = sign(std::slice::from_ref(&key), &id, at, body.as_bytes());
        let signature = BASE64.decode(header.strip_prefix("v1a,").expect("a token")).expect("base64");
        let signature = ed25519_dalek::Signature::from_slice(&signature).expect("64 bytes");
        let public = key.public_key().and_then(|text| BASE64.decode(&text[5..]).ok()).expect("base64");
        let public = ed25519_dalek::VerifyingKey::try_from(public.as_slice()).expect("a public key");
        let message = format!("{id}.{at}.{body}");
        prop_assert!(public.verify_strict(message.as_bytes(), &signature).is_ok());
        prop_assert!(public.verify_strict([message.as_bytes(), b"x"].concat().as_slice(), &signature).is_err());
        prop_assert_eq!(key.to_string().parse::<SigningKey>().map(|read| read.public_key()), Ok(key.public_key()));
    }

    #[test]
    fn garbage_in_the_headers_never_passes_and_never_panics(
        id in "\\PC{0,20}", timestamp in "\\PC{0,20}", signature in "(v1,)?\\PC{0,60}",
    ) {
        prop_assert!(check(Some(&id), Some(&timestamp), Some(&signature)).is_err());
    }
}

/// The time since the epoch; the official library looks at the system's clock, so its test must too.
#[expect(clippy::disallowed_methods, reason = "standardwebhooks compares with the system's clock")]
fn since_epoch() -> std::time::Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970")
}

#[test]
fn a_public_key_is_read_from_either_half_and_from_nothing_else() {
    let key = Ed25519Key::from_random([3; 32]);
    let header = sign(&[SigningKey::Ed25519(key.clone())], "evt_1", 7, b"body");
    let headers = SignedHeaders { id: Some("evt_1"), timestamp: Some("7"), signature: Some(&header) };
    for text in [key.public_key(), key.to_string()] {
        let verifying: VerifyingKey = text.parse().expect("a key");
        assert_eq!(verify(&verifying, headers, b"body", 7, 0), Ok(()));
        assert_eq!(verify(&verifying, headers, b"bodx", 7, 0), Err(VerifyError::NoMatch));
    }
    for text in ["whpk_", "whpk_AAAA", "whpk_!", "whsk_AAAA", "whsec_AAAA", "", "whpk"] {
        assert!(text.parse::<VerifyingKey>().is_err(), "{text}");
    }
}
