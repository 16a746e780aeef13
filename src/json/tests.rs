//! Tests of the strict JSON validator: cases of JSONTestSuite by hand, hostile documents, agreement with `serde_json`.

use proptest::prelude::*;
use serde_json::Value;

use super::JsonFaultKind as K;
use super::*;

const LIMITS: JsonLimits = JsonLimits { max_depth: 64 };

fn kind(text: impl AsRef<[u8]>) -> Option<JsonFaultKind> {
    validate(text.as_ref(), &LIMITS).err().map(|fault| fault.kind)
}

/// Cases of JSONTestSuite (`y_`) and the ones where readers differ, all of which are accepted here.
#[test]
fn every_well_formed_document_is_accepted() {
    let accepted = [
        "[]",
        "{}",
        " [ ] ",
        "\t\r\n 1\n",
        "null",
        "true",
        "false",
        "\"\"",
        "0",
        "-0",
        "-0.0",
        "1e5",
        "1E+5",
        "1e-5",
        "0e1",
        "0e+1",
        "20e1",
        "123.456e78",
        "-123123.123e-10",
        "1e308",
        "1e-400",
        "0.4e-00669",
        "123456789012345678901234567890",
        r#"{"a":"b"}"#,
        r#"{"":0}"#,
        r#"{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}"#,
        r#"["\"\\\/\b\f\n\r\t"]"#,
        r#"["\u0060\u012a\u12AB"]"#,
        r#"["\uD801\udc37"]"#,
        r#"["\uDBFF\uDFFF"]"#,
        r#"["\u005C","\u0022","\u00A0"]"#,
        r#"["\\u0000","\\uD800"]"#,
        "[\"\u{7f}\u{2028}\u{2029}\u{feff}\u{ffff}\u{10ffff}\"]",
        "[\"π\",\"𝄞\"]",
        r#"[1,[2,[3]],{"x":[]},null]"#,
        "[\n1\n,\n2\n]",
    ];
    for text in accepted {
        assert_eq!(kind(text), None, "{text}");
        assert!(serde_json::from_str::<Value>(text).is_ok(), "serde_json refuses {text}");
    }
}

/// Each with the reason for which it is refused.
const ILL_FORMED: &[(&[u8], K)] = &[
    (b"", K::UnexpectedEnd),
    (b" ", K::UnexpectedEnd),
    (b"[", K::UnexpectedEnd),
    (b"{", K::UnexpectedEnd),
    (b"[1", K::UnexpectedEnd),
    (b"[1,", K::UnexpectedEnd),
    (b"{\"a\"", K::UnexpectedEnd),
    (b"{\"a\":", K::UnexpectedEnd),
    (b"{\"a\":1", K::UnexpectedEnd),
    (b"\"abc", K::UnexpectedEnd),
    (b"\"\\", K::UnexpectedEnd),
    (b"\"\\u00", K::UnexpectedEnd),
    (b"tru", K::UnexpectedEnd),
    (b"-", K::UnexpectedEnd),
    (b"1.", K::UnexpectedEnd),
    (b"1e+", K::UnexpectedEnd),
    (b"[1,]", K::UnexpectedByte),
    (b"[,1]", K::UnexpectedByte),
    (b"[1 2]", K::UnexpectedByte),
    (b"[1}", K::UnexpectedByte),
    (b"{\"a\":1]", K::UnexpectedByte),
    (b"{\"a\":1,}", K::UnexpectedByte),
    (b"{\"a\" 1}", K::UnexpectedByte),
    (b"{a:1}", K::UnexpectedByte),
    (b"{'a':1}", K::UnexpectedByte),
    (b"{1:1}", K::UnexpectedByte),
    (b"[NaN]", K::UnexpectedByte),
    (b"[nan]", K::UnexpectedByte),
    (b"[Infinity]", K::UnexpectedByte),
    (b"[+1]", K::UnexpectedByte),
    (b"[.5]", K::UnexpectedByte),
    (b"True", K::UnexpectedByte),
    (b"/* */1", K::UnexpectedByte),
    (b"\x0c1", K::UnexpectedByte),
    ("\u{a0}1".as_bytes(), K::UnexpectedByte),
    ("[１]".as_bytes(), K::UnexpectedByte),
    (b"[01]", K::BadNumber),
    (b"[-01]", K::BadNumber),
    (b"[1.e1]", K::BadNumber),
    (b"[-a]", K::BadNumber),
    (b"[1ea]", K::BadNumber),
    (b"[0x1]", K::UnexpectedByte),
    (b"[1_000]", K::UnexpectedByte),
    (b"[1e400]", K::NumberOutOfRange),
    (b"[-1e9999999999999999999]", K::NumberOutOfRange),
    (b"1 2", K::TrailingBytes),
    (b"[]]", K::TrailingBytes),
    (b"{}x", K::TrailingBytes),
    (b"1\0", K::TrailingBytes),
    (b"\"\t\"", K::ControlCharacter),
    (b"\"\0\"", K::ControlCharacter),
    (b"\"0123456789\n\"", K::ControlCharacter),
    (b"\"\\x41\"", K::BadEscape),
    (b"\"\\u12G4\"", K::BadEscape),
    (b"\"\\u+123\"", K::BadEscape),
    (b"\"\\\t\"", K::BadEscape),
    (b"\"\\uD800\"", K::LoneSurrogate),
    (b"\"\\uD800\\n\"", K::LoneSurrogate),
    (b"\"\\uD800\\u0041\"", K::LoneSurrogate),
    (b"\"\\uD800\\uD800\"", K::LoneSurrogate),
    (b"\"\\uDC00\"", K::LoneSurrogate),
    (b"{\"\\uDFFF\":1}", K::LoneSurrogate),
    (b"\"\\u0000\"", K::NulCharacter),
    (b"{\"a\\u0000\":1}", K::NulCharacter),
    (b"\xEF\xBB\xBF{}", K::ByteOrderMark),
    (b"[\"\xff\"]", K::NotUtf8),
    (b"[\"\xed\xa0\x80\"]", K::NotUtf8),
    (b"[\"\xc0\xaf\"]", K::NotUtf8),
    (b"\xff\xfe1\0", K::NotUtf8),
];

#[test]
fn every_ill_formed_document_is_refused_for_its_reason() {
    for (text, expected) in ILL_FORMED {
        assert_eq!(kind(text), Some(*expected), "{}", String::from_utf8_lossy(text));
    }
}

#[test]
fn a_key_may_not_occur_twice_however_it_is_spelled() {
    let twice = [
        r#"{"a":1,"a":2}"#,
        r#"{"a":1,"\u0061":2}"#,
        r#"{"\u0061":1,"a":2}"#,
        r#"{"\/":1,"/":2}"#,
        r#"{"\n":1,"\u000a":2}"#,
        r#"{"𝄞":1,"\ud834\udd1e":2}"#,
        r#"{"":1,"b":2,"":3}"#,
        r#"[{"x":{"y":1,"z":2,"y":3}}]"#,
    ];
    for text in twice {
        assert_eq!(kind(text), Some(JsonFaultKind::DuplicateKey), "{text}");
    }
    let many = |last: &str| {
        let keys: Vec<String> = (0..100_000).map(|n| format!("\"k{n}\":{n}")).collect();
        format!("{{{},\"{last}\":0}}", keys.join(","))
    };
    assert_eq!(kind(many("other")), None);
    assert_eq!(kind(many("k77")), Some(JsonFaultKind::DuplicateKey));
    assert_eq!(kind(many("\\u006b77")), Some(JsonFaultKind::DuplicateKey));
}

#[test]
fn a_fault_names_its_place() {
    let fault = validate("{\n \"ä\": [1,\n  x]}".as_bytes(), &LIMITS).expect_err("x is no value");
    assert_eq!((fault.offset, fault.line, fault.column), (15, 3, 3));
    assert_eq!(fault.to_string(), "unexpected character at line 3 column 3");
    let fault = validate(br#"{"a":1,"b":{"a":2},"a":3}"#, &LIMITS).expect_err("a occurs twice");
    assert_eq!((fault.offset, fault.kind), (19, JsonFaultKind::DuplicateKey));
}

#[test]
fn nesting_is_counted_and_bounded() {
    let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
    assert_eq!(kind(nested(64)), None);
    assert_eq!(kind(nested(65)), Some(JsonFaultKind::TooDeep));
    assert_eq!(validate(b"1", &JsonLimits { max_depth: 0 }), Ok(()));
    assert!(validate(b"[]", &JsonLimits { max_depth: 0 }).is_err());
    assert_eq!(kind("[".repeat(512 * 1024)), Some(JsonFaultKind::TooDeep));
    assert_eq!(kind("{\"a\":".repeat(100_000)), Some(JsonFaultKind::TooDeep));
    assert_eq!(
        validate(nested(300_000).as_bytes(), &JsonLimits { max_depth: usize::MAX }),
        Ok(()),
        "no recursion, so no stack to overflow"
    );
}

#[test]
fn large_hostile_documents_take_linear_time() {
    let size = 512 * 1024;
    for text in [
        format!("\"{}\"", "\\u0041".repeat(size / 6)),
        "9".repeat(size),
        format!("0.{}", "0".repeat(size)),
        format!("[{}1]", "1,".repeat(size / 2)),
        "\"".repeat(size),
        "\\".repeat(size),
        " ".repeat(size),
        "{\"".repeat(size / 2),
        "[{},".repeat(size / 4),
    ] {
        // The verdict varies; what counts is that it comes, at once and without a panic.
        let _ = kind(text);
    }
    assert_eq!(kind("9".repeat(400)), Some(JsonFaultKind::NumberOutOfRange));
    assert_eq!(kind("9".repeat(300)), None);
}

/// `cargo test --release json::tests::speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed_of_a_typical_document() {
    let item = r#"{"id":"ord_1234567890","amount":12.5,"note":"a line of text, ordinary","tags":["a","b"],"ok":true}"#;
    let text = format!("{{\"items\":[{}]}}", [item; 10].join(","));
    let rounds: u32 = 100_000;
    let start = std::time::Instant::now();
    for _ in 0..rounds {
        validate(std::hint::black_box(text.as_bytes()), &LIMITS).expect("valid");
    }
    println!("{} bytes: {:?}", text.len(), start.elapsed() / rounds);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter_map("finite", |n| serde_json::Number::from_f64(n).map(Value::Number)),
        "[^\u{0}]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 24, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..24).prop_map(Value::from),
            prop::collection::hash_map("[^\u{0}]{0,6}", inner, 0..24)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_serde_json_writes_is_accepted(value in any_json()) {
        prop_assert_eq!(kind(value.to_string()), None);
        prop_assert_eq!(kind(format!("{value:#}")), None);
    }

    #[test]
    fn what_is_accepted_serde_json_reads(
        value in any_json(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..4),
    ) {
        let mut bytes = value.to_string().into_bytes();
        for (index, byte, is_insertion) in edits {
            let at = index.index(bytes.len());
            let byte = if byte < 128 { byte } else { br#"{}[]",:\u0e-.1 "#[usize::from(byte) % 15] };
            if is_insertion { bytes.insert(at, byte) } else { bytes[at] = byte }
        }
        if kind(&bytes).is_none() {
            prop_assert!(serde_json::from_slice::<Value>(&bytes).is_ok());
        } else if let Err(fault) = validate(&bytes, &LIMITS) {
            prop_assert!(fault.offset <= bytes.len());
        }
    }

    #[test]
    fn json_like_noise_never_disagrees_with_serde_json(text in r#"[\[\]{}",:\\u0dDe\-.1 a]{0,24}"#) {
        // Everything serde_json refuses is refused; the reverse differs only by the stricter rules.
        if kind(&text).is_none() {
            prop_assert!(serde_json::from_str::<Value>(&text).is_ok());
        } else if serde_json::from_str::<Value>(&text).is_ok() {
            prop_assert!(matches!(
                kind(&text),
                Some(JsonFaultKind::DuplicateKey | JsonFaultKind::NulCharacter | JsonFaultKind::LoneSurrogate)
            ));
        }
    }

    #[test]
    fn a_repeated_key_is_always_found(
        keys in prop::collection::hash_set("[a-z]{1,3}", 1..60),
        again in any::<prop::sample::Index>(),
    ) {
        let keys: Vec<String> = keys.into_iter().collect();
        let object = |keys: &[String]| {
            let members: Vec<String> = keys.iter().map(|key| format!("\"{key}\":[]")).collect();
            format!("{{{}}}", members.join(","))
        };
        prop_assert_eq!(kind(object(&keys)), None);
        let first = again.get(&keys).clone();
        let escaped = format!("\\u{:04x}{}", u32::from(first.as_bytes()[0]), &first[1..]);
        for spelling in [first, escaped] {
            let mut twice = keys.clone();
            twice.push(spelling);
            prop_assert_eq!(kind(object(&twice)), Some(JsonFaultKind::DuplicateKey));
        }
    }
}
