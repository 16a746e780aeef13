//! [pure] The bodies that were perhaps sent, made from the one that was verified: frameworks parse and write anew,
//! editors add a line end, shells drop one.
//!
//! Called by `diagnosis`. Verifies nothing itself. A JSON text is taken apart into tokens and written with other white
//! space: keys keep their order and numbers their spelling, which a tree of values would lose.
//!
//! Invariant: time and space are linear in the body for each variant.

/// A body that was perhaps sent, and what to tell if it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variant {
    pub(super) body: Vec<u8>,
    pub(super) lesson: &'static str,
}

const PARSED: &str = "the signature matches when the JSON is re-serialised: your framework parsed the body before you \
    verified it.\nVerify the raw bytes of the request, and parse them afterwards (Express: express.raw(); FastAPI, \
    Starlette: request.body();\nDjango: request.body; Flask: request.get_data(); Rails: request.raw_post; \
    PHP: file_get_contents('php://input'))";
const ADDED_LINE_END: &str = "the signature matches without the line end at the end of the body: something added one \
    (an editor, echo, a here-document).\nVerify the bytes as they arrived; printf %s and curl --data-binary add nothing";
const LOST_LINE_END: &str = "the signature matches with a trailing newline, which is missing here: something cut it off \
    ($(…) in a shell, trim()).\nVerify the bytes as they arrived";
const CRLF: &str = "the signature matches with other line ends: something turned LF into CRLF or back (a text mode, git, \
    an editor).\nVerify the bytes as they arrived";
const BYTE_ORDER_MARK: &str = "the signature matches without the byte order mark at the beginning: an editor added it.\n\
    Verify the bytes as they arrived";
const QUOTED: &str = "the signature matches when the body is taken out of a JSON string: it was logged or stored as \
    JSON, with its quotes escaped.\nVerify the bytes as they arrived";

/// The variants of a body, the likeliest first; the body itself is not among them.
pub(super) fn variants(body: &[u8]) -> Vec<Variant> {
    let mut all = Vec::new();
    let mut add = |body: Vec<u8>, lesson| all.push(Variant { body, lesson });
    let trimmed = body.strip_suffix(b"\n").map(|body| body.strip_suffix(b"\r").unwrap_or(body));
    if let Some(trimmed) = trimmed {
        add(trimmed.to_vec(), ADDED_LINE_END);
    }
    add([body, b"\n"].concat(), LOST_LINE_END);
    add([body, b"\r\n"].concat(), LOST_LINE_END);
    if let Some(rest) = body.strip_prefix(b"\xEF\xBB\xBF") {
        add(rest.to_vec(), BYTE_ORDER_MARK);
    }
    if let Ok(text) = std::str::from_utf8(body) {
        let unix = text.replace("\r\n", "\n");
        add(unix.replace('\n', "\r\n").into_bytes(), CRLF);
        add(unix.into_bytes(), CRLF);
        if let Ok(inner) = serde_json::from_str::<String>(text.trim()) {
            add(inner.into_bytes(), QUOTED);
        }
        for layout in layouts() {
            add(write(text, &layout, str::to_owned), PARSED);
            add(write(text, &layout, plain_string), PARSED);
        }
        // A tree of values sorts the keys, as some senders and some libraries do.
        if let Ok(value) = serde_json::from_str::<serde_json::Value>(text) {
            add(value.to_string().into_bytes(), PARSED);
        }
    }
    all.retain(|variant| variant.body != body);
    all
}

/// How white space stands in JSON.
#[derive(Debug, Clone, Copy)]
struct Spacing {
    comma: &'static str,
    colon: &'static str,
    /// Spaces for each level; `None`: all in one line.
    indent: Option<usize>,
}

/// As JSON.stringify and serde write it, and Ringback its envelope.
const COMPACT: Spacing = Spacing { comma: ",", colon: ":", indent: None };
/// As Python writes it, and people at a prompt; pretty by two, and by four.
const SPACED: [Spacing; 3] = [
    Spacing { comma: ", ", colon: ": ", indent: None },
    Spacing { comma: ",", colon: ": ", indent: Some(2) },
    Spacing { comma: ",", colon: ": ", indent: Some(4) },
];

/// What a user sent stands in the message as the user wrote it: all of an event's data, input and result of a job.
const USERS_OWN: [&[&[&str]]; 5] = [
    &[&[]],
    &[&["data"]],
    &[&["data", "input"]],
    &[&["data", "result"]],
    &[&["data", "input"], &["data", "result"]],
];

/// Compact, but for the values at some paths.
#[derive(Debug, Clone, Copy)]
struct Layout {
    inner: Spacing,
    places: &'static [&'static [&'static str]],
}

fn layouts() -> impl Iterator<Item = Layout> {
    let compact = std::iter::once(Layout { inner: COMPACT, places: &[] });
    let mixed =
        SPACED.iter().flat_map(|inner| USERS_OWN.iter().map(|places| Layout { inner: *inner, places }));
    compact.chain(mixed)
}

/// Writes tokens, and knows where in the tree it is.
struct Writer<'a> {
    layout: &'a Layout,
    out: String,
    /// For each open object or array the name of the member that is written.
    path: Vec<&'a str>,
    /// How many were open where the inner spacing began.
    inner_since: Option<usize>,
}

impl<'a> Writer<'a> {
    fn spacing(&self) -> Spacing {
        if self.inner_since.is_some() { self.layout.inner } else { COMPACT }
    }

    fn new_line(&mut self) {
        if let Some(width) = self.spacing().indent {
            let depth = self.path.len() - self.inner_since.unwrap_or_default();
            self.out.push('\n');
            // A deep nesting that is indented would not be linear any more.
            self.out.extend(std::iter::repeat_n(' ', width * depth.min(64)));
        }
    }

    fn open(&mut self, bracket: char) {
        if self.inner_since.is_none() && self.layout.places.contains(&self.path.as_slice()) {
            self.inner_since = Some(self.path.len());
        }
        self.out.push(bracket);
        self.path.push("");
        self.new_line();
    }

    fn close(&mut self, bracket: char) {
        self.path.pop();
        self.new_line();
        self.out.push(bracket);
        if self.inner_since.is_some_and(|since| since >= self.path.len()) {
            self.inner_since = None;
        }
    }

    fn name(&mut self, quoted: &'a str) {
        if let Some(name) = self.path.last_mut() {
            *name = quoted.trim_matches('"');
        }
        self.out.push_str(self.spacing().colon);
    }
}

/// The same tokens in another layout. `string` writes a string, which it gets with its quotes.
fn write(text: &str, layout: &Layout, string: impl Fn(&str) -> String) -> Vec<u8> {
    let out = String::with_capacity(text.len());
    let mut writer = Writer { layout, out, path: Vec::new(), inner_since: None };
    let (mut rest, mut last_string) = (text, "");
    while let Some(first) = rest.chars().next() {
        let length = if first == '"' { string_length(rest) } else { first.len_utf8() };
        let (token, after) = rest.split_at(length);
        rest = after;
        match first {
            '"' => {
                last_string = token;
                writer.out.push_str(&string(token));
            }
            '{' | '[' => {
                if let Some(after) = rest.trim_start().strip_prefix(if first == '{' { '}' } else { ']' }) {
                    writer.out.push_str(if first == '{' { "{}" } else { "[]" });
                    rest = after;
                } else {
                    writer.open(first);
                }
            }
            '}' | ']' => writer.close(first),
            ',' => {
                writer.out.push_str(writer.spacing().comma);
                writer.new_line();
            }
            ':' => writer.name(last_string),
            ' ' | '\t' | '\r' | '\n' => {}
            _ => writer.out.push(first),
        }
    }
    writer.out.into_bytes()
}

/// How many bytes the string at the beginning has, its quotes included.
fn string_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// With as few escapes as possible: Python escapes everything outside ASCII, PHP every slash.
fn plain_string(quoted: &str) -> String {
    serde_json::from_str::<String>(quoted)
        .ok()
        .and_then(|text| serde_json::to_string(&text).ok())
        .unwrap_or_else(|| quoted.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: &str =
        r#"{"type":"job.succeeded","data":{"b":1.0,"a":[1,{}],"n":"Käse: \"5/6\", [x]"},"e":[]}"#;

    fn lesson_of(received: &str, sent: &str) -> Option<&'static str> {
        variants(received.as_bytes())
            .into_iter()
            .find(|variant| variant.body == sent.as_bytes())
            .map(|variant| variant.lesson)
    }

    #[test]
    fn what_a_framework_wrote_anew_is_found_again() {
        let python = r#"{"type": "job.succeeded", "data": {"b": 1.0, "a": [1, {}], "n": "K\u00e4se: \"5/6\", [x]"}, "e": []}"#;
        let php =
            r#"{"type":"job.succeeded","data":{"b":1.0,"a":[1,{}],"n":"K\u00e4se: \"5\/6\", [x]"},"e":[]}"#;
        let pretty = "{\n  \"type\": \"job.succeeded\",\n  \"data\": {\n    \"b\": 1.0,\n    \"a\": [\n      1,\n      {}\n    ],\n    \"n\": \"Käse: \\\"5/6\\\", [x]\"\n  },\n  \"e\": []\n}";
        for received in [python, php, pretty] {
            assert_eq!(lesson_of(received, SENT), Some(PARSED), "{received}");
        }
        assert_eq!(lesson_of(SENT, pretty), Some(PARSED));
        assert_eq!(lesson_of(r#"{"b":1,"a":2}"#, r#"{"a":2,"b":1}"#), Some(PARSED));
    }

    #[test]
    fn what_a_user_sent_keeps_the_spaces_of_the_user() {
        let received = r#"{"type":"job.succeeded","data":{"id":"job_1","input":{"method":"GET","a":[1,{"b":2}]},"result":{"x":[1,2]},"n":1}}"#;
        for sent in [
            r#"{"type":"job.succeeded","data":{"id":"job_1","input":{"method": "GET", "a": [1, {"b": 2}]},"result":{"x":[1,2]},"n":1}}"#,
            r#"{"type":"job.succeeded","data":{"id":"job_1","input":{"method":"GET","a":[1,{"b":2}]},"result":{"x": [1, 2]},"n":1}}"#,
            r#"{"type":"job.succeeded","data":{"id":"job_1","input":{"method": "GET", "a": [1, {"b": 2}]},"result":{"x": [1, 2]},"n":1}}"#,
            r#"{"type":"job.succeeded","data":{"id": "job_1", "input": {"method": "GET", "a": [1, {"b": 2}]}, "result": {"x": [1, 2]}, "n": 1}}"#,
        ] {
            assert_eq!(lesson_of(received, sent), Some(PARSED), "{sent}");
        }
    }

    #[test]
    fn line_ends_that_came_or_went_are_told_apart() {
        assert_eq!(lesson_of("{}\n", "{}"), Some(ADDED_LINE_END));
        assert_eq!(lesson_of("{}\r\n", "{}"), Some(ADDED_LINE_END));
        assert_eq!(lesson_of("{}", "{}\n"), Some(LOST_LINE_END));
        assert_eq!(lesson_of("a\r\nb", "a\nb"), Some(CRLF));
        assert_eq!(lesson_of("a\nb", "a\r\nb"), Some(CRLF));
        assert_eq!(lesson_of("\u{feff}{}", "{}"), Some(BYTE_ORDER_MARK));
        assert_eq!(lesson_of(r#""{\"a\":1}""#, r#"{"a":1}"#), Some(QUOTED));
    }

    #[test]
    fn nothing_that_is_no_json_breaks_it() {
        for body in ["", "\"", "{", "]]]", "\"\\", "{\"a\":", "\u{1f600},:"] {
            assert!(variants(body.as_bytes()).iter().all(|variant| variant.body != body.as_bytes()));
        }
        assert!(!variants(b"\xff\xfe\n").is_empty());
    }
}
