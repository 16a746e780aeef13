//! Tests of expressions: what they see and give, how they fail, and that nothing a tenant writes does harm.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn event(data: &str) -> EventContext {
    let metadata = BTreeMap::from([("plan".to_owned(), "pro".to_owned())]);
    let facts = EventFacts {
        id: "evt_01h2xcejqtf2nbrexx3vqjhp41".parse().expect("an id"),
        event_type: "order.paid",
        data: data.as_bytes(),
        metadata: Some(&metadata),
    };
    EventContext::new(&facts).expect("JSON")
}

fn filter(text: &str, data: &str) -> Result<bool, String> {
    Filter::parse(text).expect(text).eval(&event(data))
}

fn transform(text: &str, data: &str) -> Result<String, String> {
    Transform::parse(text).expect(text).eval(&event(data))
}

fn fault(text: &str) -> String {
    Filter::parse(text).expect_err(text)
}

#[test]
fn a_filter_sees_the_event() {
    let data = r#"{"amount": 120, "region": "EU", "items": [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}]}"#;
    for text in [
        "data.amount > 100 && data.region == 'EU'",
        "type == 'order.paid'",
        "type.startsWith('order.')",
        "id == 'evt_01h2xcejqtf2nbrexx3vqjhp41'",
        "timestamp > timestamp('2020-01-01T00:00:00Z')",
        "timestamp.getFullYear() == 2023",
        "metadata.plan == 'pro' && !has(metadata.team)",
        "data.items.exists(i, i.sku == 'b' && i.n == 2)",
        "data.items.filter(i, i.n > 1).map(i, i.sku) == ['b']",
        "data.region in ['EU', 'UK']",
        "data.region.matches('^E.$')",
        "size(data.items) == 2 && data.items[0].sku == 'a'",
        "data.?missing.orValue(7) == 7",
        "type(data.amount) == int",
        "data.items.all(i, data.amount > i.n)",
    ] {
        assert_eq!(filter(text, data), Ok(true), "{text}");
    }
    assert_eq!(filter("data.amount > 1000", data), Ok(false));
}

#[test]
fn whole_and_broken_numbers_compare() {
    for amount in ["101", "100.5", "1.01e2", "18446744073709551615", "1e300"] {
        assert_eq!(filter("data.amount > 100", &format!("{{\"amount\": {amount}}}")), Ok(true), "{amount}");
        assert_eq!(filter("data.amount > 100.0", &format!("{{\"amount\": {amount}}}")), Ok(true), "{amount}");
        assert_eq!(filter("data.amount == 7", &format!("{{\"amount\": {amount}}}")), Ok(false), "{amount}");
    }
    assert_eq!(filter("data.amount == 7", r#"{"amount": 7.0}"#), Ok(true));
    assert_eq!(transform("double(data.n) * 1.5", r#"{"n": 3}"#), Ok("4.5".to_owned()));
}

#[test]
fn what_does_not_fit_the_data_is_an_error_that_says_so() {
    let because = |text: &str| filter(text, r#"{"amount": "7", "list": [1]}"#).expect_err(text);
    assert_eq!(because("data.missing == 1"), "there is no field 'missing'");
    assert!(
        because("data.amount > 100").contains("no matching overload"),
        "{}",
        because("data.amount > 100")
    );
    assert_eq!(because("data.amount"), "it gives a string, not true or false");
    assert_eq!(because("null"), "it gives null, not true or false");
    assert!(because("data.list[3] == 1").len() < 400);
    assert_eq!(filter("has(data.missing) && data.missing == 1", "{}"), Ok(false));
    // `||` and `&&` decide without the side that fails, as CEL says.
    assert_eq!(filter("data.missing == 1 || true", "{}"), Ok(true));
    assert!(filter("data == 1", &format!("\"{}\"", "x".repeat(100_000))).is_ok());
    assert!(filter("data + 1 == 1", &format!("\"{}\"", "x".repeat(100_000))).expect_err("text").len() < 1000);
}

#[test]
fn a_transform_makes_json() {
    let data = r#"{"amount": 12.50, "note": "a\"b\u00e9\n", "z": {"b": 1, "a": [true, null]}, "big": 12345678901234567}"#;
    for (text, expected) in [
        ("{'text': 'Paid ' + string(data.amount)}", json!({"text": "Paid 12.5"})),
        ("data.z", json!({"a": [true, null], "b": 1})),
        (
            "{'at': timestamp, 'note': data.note, 'n': [data.big, -1, 2.0]}",
            json!({"at": "2023-06-14T16:40:03.066Z", "note": "a\"b\u{e9}\n", "n": [12_345_678_901_234_567_i64, -1, 2.0]}),
        ),
        ("{1: 'a', true: 'b'}", json!({"1": "a", "true": "b"})),
        ("duration('90s')", json!("90s")),
        ("b'abc'", json!("YWJj")),
        ("data.?none", json!(null)),
        ("null", json!(null)),
    ] {
        let made = transform(text, data).expect(text);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&made).expect("JSON"), expected, "{text}");
    }
    assert!(transform("1.0 / 0.0", "{}").is_err(), "infinity is no JSON");
    assert!(transform("{1: 1, '1': 1}", "{}").expect_err("twice").contains("twice"));
}

/// The body must be the same bytes on every try, and maps have no order of their own.
#[test]
fn a_transform_gives_the_same_text_each_time() {
    let data: String =
        format!("{{{}}}", (0..50).map(|n| format!("\"k{n}\": {n}")).collect::<Vec<_>>().join(","));
    let one = transform("{'b': data, 'a': 1, 'c': data}", &data).expect("a text");
    for _ in 0..20 {
        assert_eq!(transform("{'c': data, 'b': data, 'a': 1}", &data).as_ref(), Ok(&one));
    }
}

#[test]
fn faults_of_the_text_name_the_column() {
    for (text, expected) in [
        ("data.amount >> 100", "column 14: extraneous input '>'"),
        ("data.amount >", "column 14: mismatched input '<EOF>'"),
        ("1 +\n  +", "line 2, column 3: mismatched input '+'"),
        (
            "data.a == 1 && amount > 1",
            "column 16: 'amount' is not known; the variables are id, type, timestamp, data, metadata",
        ),
        ("data.name.startWith('a')", "there is no function 'startWith'"),
        ("data.a.all(x, x.b.exists(y, y == 1))", "a comprehension inside another is not allowed"),
        ("data.a.map(x, x.map(y, y))", "a comprehension inside another is not allowed"),
        ("data.a.matches(data.b)", "the pattern of matches() must be written out"),
        ("data.a.matches('(')", "is not a regular expression"),
        ("data.a.matches('(a{1000}){1000}')", "is too large"),
        ("data.a.all(x, x.matches('a'))", "not inside a comprehension"),
        ("google.protobuf.Timestamp{seconds: 1} == timestamp", "not known"),
        ("__own__(1)", "there is no function '__own__'"),
        (" ", "is empty"),
    ] {
        let found = fault(text);
        assert!(found.contains(expected), "{text}: {found}");
    }
    assert!(fault(&"1".repeat(EXPRESSION_MAX_BYTES + 1)).contains("4096 bytes"));
    assert!(
        fault("data.a.exists(x, y == 1)").starts_with("column 18: "),
        "{}",
        fault("data.a.exists(x, y == 1)")
    );
}

/// Each of these overflowed a stack of 2 MiB in the parser or the evaluator.
#[test]
fn deep_texts_are_refused_or_evaluated_within_the_stack() {
    let max = EXPRESSION_MAX_BYTES;
    let texts = [
        "(".repeat(max / 2) + "1" + &")".repeat(max / 2 - 1),
        "[".repeat(max / 2) + &"]".repeat(max / 2),
        "!".repeat(max - 4) + "true",
        "-".repeat(max - 1) + "1",
        "data".to_owned() + &".a".repeat(max / 2 - 2),
        "data".to_owned() + &"[0]".repeat(max / 3 - 2),
        "1".to_owned() + &"+1".repeat(max / 2 - 1),
        "1".to_owned() + &"<1".repeat(max / 2 - 1),
        "true".to_owned() + &"&&true".repeat(max / 6 - 1),
        "true?1:".repeat(max / 7 - 1) + "1",
        "size(".repeat(max / 6) + "1" + &")".repeat(max / 6),
        "{1:".repeat(max / 4) + "1" + &"}".repeat(max / 4),
        "data".to_owned() + &".map(x,x)".repeat(max / 9 - 1),
        "data".to_owned() + &".size()".repeat(max / 7 - 1),
    ];
    for text in texts {
        if let Ok(parsed) = Transform::parse(&text) {
            let _ = parsed.eval(&event("[1]"));
        }
    }
    // As deep as is accepted.
    let deep = "1".to_owned() + &"+1".repeat(70);
    assert_eq!(transform(&deep, "{}"), Ok("71".to_owned()));
    let deep = "[".repeat(60) + &"]".repeat(60);
    assert_eq!(transform(&deep, "{}"), Ok(deep.clone()));
}

#[test]
fn copies_are_bounded() {
    let big = format!(r#"{{"text": "{}", "list": [{}1]}}"#, "x".repeat(100_000), "1,".repeat(50_000));
    for text in [
        "data.list.map(n, data.text)",
        "data.list.map(n, [data.text, data.text])",
        "data.list.map(n, string(n) + data.text)",
        "data.list.filter(n, size(data.text + 'a') > 1)",
        "data.list.all(n, size(data.text + 'a') > 1)",
        &format!("[{}]", vec!["data"; 700].join(",")),
    ] {
        assert!(transform(text, &big).is_err(), "{text:.60}");
    }
    let doubled = format!("['xxxxxxxx']{}[0].size()", ".map(y,y+y)".repeat(40));
    assert!(transform(&doubled, "{}").expect_err("too much").contains("copies too much"));
    let nested = format!("[1]{}.size()", ".map(y,[y,y])".repeat(40));
    assert!(transform(&nested, "{}").expect_err("too much").contains("copies too much"));
    assert!(transform("data.text + data.text + data.text", &big).expect_err("too long").contains("262144"));
    // An ordinary use of much data is none of this.
    assert_eq!(filter("data.list.exists(n, n == 2)", &big), Ok(false));
    assert_eq!(transform("size(data.list.map(n, string(n) + 'x'))", &big), Ok("50001".to_owned()));
}

#[test]
fn an_expression_of_an_older_build_fails_visibly() {
    let filter = Filter::stored("data.a.matches(data.b)");
    assert_eq!(filter.as_str(), "data.a.matches(data.b)");
    assert!(filter.eval(&event("{}")).expect_err("unreadable").starts_with("it cannot be read"));
}

/// `cargo test --release endpoints::expression::tests::speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed_of_a_typical_filter() {
    let filter = Filter::parse("data.amount > 100 && data.region == 'EU'").expect("a filter");
    let one = event(r#"{"amount": 120, "region": "EU", "items": [1, 2, 3]}"#);
    let rounds = 100_000;
    let start = std::time::Instant::now();
    for _ in 0..rounds {
        std::hint::black_box(filter.eval(&one)).expect("a verdict");
    }
    println!("{:?}", start.elapsed() / rounds);
}

fn words() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "data",
        ".a",
        ".b",
        "[0]",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "'a'",
        "\"",
        "'",
        "1",
        "2.5",
        "-",
        "!",
        "+",
        "*",
        "/",
        "%",
        "==",
        "<",
        "&&",
        "||",
        "?",
        ":",
        ",",
        ".map(x, ",
        ".all(x, ",
        ".filter(x, ",
        ".exists_one(x, ",
        "x",
        "has(",
        "size(",
        "string(",
        "int(",
        "timestamp",
        "type",
        "null",
        "true",
        "in",
        "\n",
        "\\",
        ".?",
        "b'",
        "1u",
        "9223372036854775807",
        "duration('1s')",
        "é",
        "\u{0}",
    ]);
    prop::collection::vec(word, 0..24).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn no_text_panics(text in prop_oneof![words(), "\\PC{0,60}", ".{0,40}"]) {
        let one = event(r#"{"a": [1, 2.5, "x", {"b": null}], "b": {"a": "y"}}"#);
        if let Ok(filter) = Filter::parse(&text) {
            let _ = filter.eval(&one);
        }
        if let Ok(transform) = Transform::parse(&text)
            && let Ok(made) = transform.eval(&one)
        {
            prop_assert!(crate::json::validate(made.as_bytes(), &crate::json::JsonLimits { max_depth: 300 }).is_ok(), "{made}");
            prop_assert_eq!(transform.eval(&one), Ok(made));
        }
    }

    #[test]
    fn data_passes_through_a_transform(data in json_value(4)) {
        let text = data.to_string();
        let made = transform("data", &text).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&made).expect("JSON"), data);
    }
}

fn json_value(depth: u32) -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<u64>().prop_map(serde_json::Value::from),
        (-1e9..1e9f64).prop_map(serde_json::Value::from),
        "[a-z\u{e9}\"\\\\\n]{0,8}".prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(depth, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
            prop::collection::hash_map("[a-z]{0,4}", inner, 0..5)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}
