//! [pure] The three signed headers out of raw header lines, as they stand in a log, a dump or the output of `curl -v`.
//!
//! Called by `verify`. Judges no value.

/// What was found; `None` where a header is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Signed {
    pub(super) id: Option<String>,
    pub(super) timestamp: Option<String>,
    pub(super) signature: Option<String>,
}

/// Reads the lines up to the first empty one. Names are compared without case; other headers, a request line and the
/// marks of `curl -v` are passed over.
/// # Errors
/// A signed header stands there twice.
pub(super) fn parse(text: &str) -> Result<Signed, String> {
    let mut signed = Signed::default();
    let lines = text.trim_start().lines().map(|line| line.trim_start_matches(['<', '>', '*']).trim());
    for line in lines.take_while(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let name = name.trim().to_ascii_lowercase();
        let place = match name.as_str() {
            "webhook-id" => &mut signed.id,
            "webhook-timestamp" => &mut signed.timestamp,
            "webhook-signature" => &mut signed.signature,
            _ => continue,
        };
        if place.replace(value.trim().to_owned()).is_some() {
            return Err(format!("the header {name} stands there twice; give the headers of one message"));
        }
    }
    Ok(signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(id: &str, timestamp: &str, signature: &str) -> Signed {
        let some = |text: &str| Some(text.to_owned());
        Signed { id: some(id), timestamp: some(timestamp), signature: some(signature) }
    }

    #[test]
    fn header_lines_are_read_whatever_their_case_and_line_ends() {
        let text = "POST /hook HTTP/1.1\r\nHost: localhost:3000\r\nWebhook-Id: evt_1\r\nwebhook-timestamp:1764\r\n\
                    WEBHOOK-SIGNATURE:   v1,abc= v1,def=  \r\n\r\n{\"webhook-id: no\": 1}";
        assert_eq!(parse(text), Ok(signed("evt_1", "1764", "v1,abc= v1,def=")));
    }

    #[test]
    fn the_marks_of_curl_are_passed_over() {
        let text = "* Connected\n> POST / HTTP/1.1\n> webhook-id: e\n> webhook-timestamp: 1\n> webhook-signature: v1,x";
        assert_eq!(parse(text), Ok(signed("e", "1", "v1,x")));
    }

    #[test]
    fn what_is_absent_is_none_and_what_is_there_twice_is_refused() {
        assert_eq!(parse("\n\nx-other: 1\n"), Ok(Signed::default()));
        assert!(parse("webhook-id: a\nwebhook-id: b").is_err());
    }
}
