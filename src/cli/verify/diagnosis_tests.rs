//! What the author of a receiver is told, case by case.

use super::*;
use crate::signing::{Ed25519Key, SigningKey, sign};

const SECRET: &str = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
const NOW_S: i64 = 1_764_547_200;
const BODY: &[u8] = br#"{"type":"job.succeeded","data":{"b":1.0,"a":2}}"#;

fn diagnose_as(change: impl FnOnce(&mut Message<'_>)) -> Result<(), String> {
    let secret = SigningSecret::parse(SECRET).expect("secret");
    let signature = sign(&[secret.into()], "evt_1", NOW_S, BODY);
    let timestamp = NOW_S.to_string();
    let mut message =
        Message { id: Some("evt_1"), timestamp: Some(&timestamp), signature: Some(&signature), body: BODY };
    change(&mut message);
    diagnose(SECRET, message, NOW_S + 10, 300).map_err(|reasons| reasons.join("\n"))
}

#[test]
fn what_was_signed_is_verified() {
    assert_eq!(diagnose_as(|_| ()), Ok(()));
}

#[test]
fn each_header_is_explained() {
    type Change = fn(&mut Message<'_>);
    let cases: [(Change, &str); 10] = [
        (|m| m.id = None, "webhook-id is missing"),
        (|m| m.id = Some(""), "webhook-id is empty"),
        (|m| m.timestamp = Some("1764547200.5"), "without a fraction"),
        (|m| m.timestamp = Some("2026-01-01T00:00:00Z"), "not a date"),
        (|m| m.timestamp = Some("1764547200000"), "in milliseconds"),
        (|m| m.signature = Some(""), "it is empty"),
        (
            |m| m.signature = Some("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
            "v1, and a comma, is missing",
        ),
        (
            |m| m.signature = Some("00000000000000000000000000000000ffffffffffffffffffffffffffffffff"),
            "hexadecimal",
        ),
        (|m| m.signature = Some("v1a,AAAA"), "ed25519"),
        (|m| m.signature = Some("v1,AAAA"), "the secret is another one"),
    ];
    for (change, wanted) in cases {
        let said = diagnose_as(change).expect_err("refused");
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}

#[test]
fn a_body_that_was_parsed_first_is_found_out() {
    let said = diagnose_as(|m| m.body = br#"{"type": "job.succeeded", "data": {"b": 1.0, "a": 2}}"#)
        .expect_err("refused");
    assert!(said.contains("parsed the body before you verified"), "{said}");
    let said = diagnose_as(|m| m.body = b"{\"type\":\"job.succeeded\",\"data\":{\"b\":1.0,\"a\":2}}\n")
        .expect_err("refused");
    assert!(said.contains("line end"), "{said}");
    let said = diagnose_as(|m| m.body = b"").expect_err("refused");
    assert!(said.contains("the body is empty"), "{said}");
}

#[test]
fn an_old_message_is_told_from_a_wrong_one() {
    let secret = SigningSecret::parse(SECRET).expect("secret");
    let signature = sign(&[secret.into()], "evt_1", NOW_S, BODY);
    let timestamp = NOW_S.to_string();
    let message =
        Message { id: Some("evt_1"), timestamp: Some(&timestamp), signature: Some(&signature), body: BODY };
    let at = |now_s, tolerance_s| diagnose(SECRET, message, now_s, tolerance_s);
    let said = at(NOW_S + 4000, 300).expect_err("refused").join("\n");
    assert!(said.contains("4000 s (1h 6m 40s) ago") && said.contains("--no-tolerance"), "{said}");
    let said = at(NOW_S - 301, 300).expect_err("refused").join("\n");
    assert!(said.contains("301 s ahead"), "{said}");
    let other = Message { body: b"[]", ..message };
    let said = diagnose(SECRET, other, NOW_S + 4000, 300).expect_err("refused").join("\n");
    assert!(said.contains("too old") && said.contains("Besides"), "{said}");
    assert_eq!(at(NOW_S + 4000, u32::MAX), Ok(()));
}

#[test]
fn a_signer_that_used_the_secrets_text_is_found_out() {
    let undecoded = SigningSecret::from_bytes(SECRET.as_bytes().to_vec()).expect("length");
    let signature = sign(&[undecoded.into()], "evt_1", NOW_S, BODY);
    let said = diagnose_as(|message| message.signature = Some(Box::leak(signature.into_boxed_str())))
        .expect_err("refused");
    assert!(said.contains("the secret's text as the key"), "{said}");
}

#[test]
fn a_body_that_ringback_never_writes_is_found_out_although_nothing_matches() {
    let rewritten = br#"{"timestamp": "2026-01-01T00:00:00.000Z", "type": "a.b", "data": {"x": 1.50}}"#;
    let said = diagnose_as(|m| m.body = rewritten).expect_err("refused");
    assert!(said.contains("not written as Ringback writes it"), "{said}");
    let ours = br#"{"type":"a.b","timestamp":"2026-01-01T00:00:00.000Z","data":{"x": 1.50}}"#;
    let said = diagnose_as(|m| m.body = ours).expect_err("refused");
    assert!(said.contains("the secret is another one"), "{said}");
}

#[test]
fn a_public_key_verifies_and_is_told_what_goes_wrong() {
    let key = Ed25519Key::from_random([7; 32]);
    let public = key.public_key();
    let signature = sign(&[SigningKey::Ed25519(key)], "evt_1", NOW_S, BODY);
    let timestamp = NOW_S.to_string();
    let message =
        Message { id: Some("evt_1"), timestamp: Some(&timestamp), signature: Some(&signature), body: BODY };
    let said = |key: &str, message| diagnose(key, message, NOW_S, 300).map_err(|reasons| reasons.join("\n"));

    assert_eq!(said(&public, message), Ok(()));
    let parsed = Message { body: br#"{"type": "job.succeeded", "data": {"b": 1.0, "a": 2}}"#, ..message };
    assert!(said(&public, parsed).expect_err("refused").contains("parsed the body before you verified"));
    assert!(said(SECRET, message).expect_err("refused").contains("--secret whpk_"));
    let other = Ed25519Key::from_random([8; 32]).public_key();
    assert!(said(&other, message).expect_err("refused").contains("the secret is another one"));
    let hmac = sign(&[SigningSecret::parse(SECRET).expect("secret").into()], "evt_1", NOW_S, BODY);
    let by_secret = Message { signature: Some(&hmac), ..message };
    assert!(said(&public, by_secret).expect_err("refused").contains("no v1a token"));
    let bare = Message { signature: signature.strip_prefix("v1a,"), ..message };
    assert!(said(&public, bare).expect_err("refused").contains("v1a, and a comma, is missing"));
    assert!(said("whpk_AAAA", message).expect_err("refused").contains("32 bytes"));
    assert!(said("secret", message).expect_err("refused").contains("whpk_"));
}
