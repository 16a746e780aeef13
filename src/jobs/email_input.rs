//! [pure] The input of an `email` job: one message.
//!
//! Called by `jobs::new_job` at acceptance and by `executors::email` before each try. Sends nothing.
//!
//! Invariant: no address and no subject that is accepted can begin another header: control characters are refused.

use serde_json::value::RawValue;

use crate::fields::{Faults, Fields, type_of};
use crate::operator::SmtpSpec;

/// To so many a message goes at most, all kinds of receivers together.
const RECIPIENTS_MAX: usize = 100;
/// RFC 5321, section 4.5.3.1.3, and a name before it.
const ADDRESS_MAX: usize = 320;
/// RFC 5322, section 2.1.1: what a line holds.
const SUBJECT_MAX: usize = 998;

/// A message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EmailInput {
    /// Receivers.
    pub to: Vec<String>,
    /// Copies.
    pub cc: Vec<String>,
    /// Copies that nobody sees.
    pub bcc: Vec<String>,
    /// The sender; absent: the operator's.
    pub from: Option<String>,
    /// Where answers go.
    pub reply_to: Option<String>,
    /// The subject.
    pub subject: String,
    /// The text.
    pub text: Option<String>,
    /// The same as HTML.
    pub html: Option<String>,
}

/// Reads an input at the pointer `at`. With the operator's file also: is there a server, and a sender?
pub fn parse(
    at: &str,
    raw: &RawValue,
    smtp: Option<Option<&SmtpSpec>>,
    faults: &mut Faults,
) -> Option<EmailInput> {
    let mut fields = Fields::open(at, raw, faults)?;
    let to = addresses(&mut fields, "to", faults);
    let cc = addresses(&mut fields, "cc", faults).unwrap_or_default();
    let bcc = addresses(&mut fields, "bcc", faults).unwrap_or_default();
    let from = address(&mut fields, "from", faults);
    let reply_to = address(&mut fields, "reply_to", faults);
    let subject = fields.string("subject", 0..=SUBJECT_MAX, faults);
    if subject.as_deref().is_some_and(has_control) {
        fields.fault("subject", "must be one line, without control characters", faults);
    }
    let text = fields.string("text", 0..=super::INPUT_MAX_BYTES, faults);
    let html = fields.string("html", 0..=super::INPUT_MAX_BYTES, faults);
    if let Some(to) = &to
        && to.len() + cc.len() + bcc.len() > RECIPIENTS_MAX
    {
        let detail = format!(
            "a message goes to {RECIPIENTS_MAX} receivers at most; send a batch of jobs, one for each"
        );
        fields.fault("to", detail, faults);
    }
    if to.as_ref().is_some_and(Vec::is_empty) {
        fields.fault("to", "must name at least one receiver", faults);
    }
    if text.is_none() && html.is_none() && faults.is_empty() {
        fields.fault("text", "is missing; give text, html, or both", faults);
    }
    match smtp {
        Some(None) => faults.add(at, "no mail server is configured ([smtp] in the operator's file)"),
        Some(Some(SmtpSpec { from: None, .. })) if from.is_none() => {
            fields.fault("from", "is missing, and the operator's file names no sender", faults);
        }
        _ => {}
    }
    let asked_to = fields.pointer("to");
    fields.finish(faults);
    if to.is_none() && faults.is_empty() {
        faults.add(asked_to, "is missing; name the receiver, as in \"ada@example.com\"");
    }
    Some(EmailInput { to: to?, cc, bcc, from, reply_to, subject: subject.unwrap_or_default(), text, html })
}

fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

/// A first look; the executor's library reads them in full.
fn fault_of(address: &str) -> Option<&'static str> {
    if has_control(address) {
        return Some("must be one line, without control characters");
    }
    let bare = match address.rsplit_once('<') {
        Some((_, rest)) => rest.strip_suffix('>').unwrap_or(""),
        None => address,
    };
    let fits = bare.rsplit_once('@').is_some_and(|(local, domain)| {
        !local.is_empty() && !domain.is_empty() && !bare.contains([' ', ',', ';', '<', '>'])
    });
    (!fits || address.len() > ADDRESS_MAX)
        .then_some("must be an address, as in ada@example.com or Ada <ada@example.com>")
}

fn address(fields: &mut Fields<'_>, name: &'static str, faults: &mut Faults) -> Option<String> {
    let text = fields.string(name, 1..=ADDRESS_MAX, faults)?;
    if let Some(fault) = fault_of(&text) {
        fields.fault(name, fault, faults);
    }
    Some(text)
}

/// A string, or a list of them.
fn addresses(fields: &mut Fields<'_>, name: &'static str, faults: &mut Faults) -> Option<Vec<String>> {
    let raw = fields.raw(name)?;
    let at = fields.pointer(name);
    let given: Vec<(String, String)> = if type_of(raw) == "a string" {
        vec![(at, serde_json::from_str(raw.get()).ok()?)]
    } else if let Ok(list) = serde_json::from_str::<Vec<String>>(raw.get()) {
        list.into_iter().enumerate().map(|(place, text)| (format!("{at}/{place}"), text)).collect()
    } else {
        faults.add(at, "must be an address or a list of addresses");
        return None;
    };
    for (at, text) in &given {
        if let Some(fault) = fault_of(text) {
            faults.add(at, fault);
        }
    }
    Some(given.into_iter().map(|(_, text)| text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(input: &str) -> Vec<String> {
        let (raw, mut faults) = (RawValue::from_string(input.to_owned()).expect("JSON"), Faults::default());
        parse("/input", &raw, None, &mut faults);
        faults.into_vec().into_iter().map(|fault| fault.pointer).collect()
    }

    #[test]
    fn one_message_with_one_or_more_receivers() {
        assert_eq!(
            faults_of(r#"{"to": "a@example.com", "subject": "ü", "text": "x"}"#),
            Vec::<String>::new()
        );
        assert_eq!(
            faults_of(r#"{"to": ["A <a@example.com>", "b@example.com"], "html": "<p>"}"#),
            Vec::<String>::new()
        );
        assert_eq!(faults_of(r#"{"subject": "x", "text": "x"}"#), ["/input/to"]);
        assert_eq!(faults_of(r#"{"to": [], "text": "x"}"#), ["/input/to"]);
        assert_eq!(faults_of(r#"{"to": "a@example.com"}"#), ["/input/text"]);
    }

    #[test]
    fn nothing_begins_another_header() {
        assert_eq!(faults_of(r#"{"to": "a@example.com\r\nBcc: b@example.com", "text": "x"}"#), ["/input/to"]);
        assert_eq!(
            faults_of(r#"{"to": "a@example.com", "subject": "x\nBcc: b@example.com", "text": "x"}"#),
            ["/input/subject"]
        );
        assert_eq!(faults_of(r#"{"to": "a@example.com, b@example.com", "text": "x"}"#), ["/input/to"]);
        assert_eq!(faults_of(r#"{"to": ["a@example.com", "no"], "text": "x"}"#), ["/input/to/1"]);
    }
}
