//! [pure] What the end of a program means: the report on its job.
//!
//! Called by `worker`. Results are sent byte for byte as the program wrote them.

use std::fmt::Write;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::json::{JsonLimits, validate};

/// The service takes results up to this.
pub(super) const OUTPUT_MAX: usize = 256 * 1024;
/// `EX_DATAERR` of sysexits.h: the job itself is at fault.
const FAILED_FOR_GOOD: i32 = 65;
const DEPTH_MAX: usize = 64;
const MESSAGE_MAX: usize = 1000;

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself: its exit code, or the signal that killed it.
    Exited(Result<i32, i32>),
    /// It could not be started.
    NotStarted(String),
    /// We stopped it because someone cancelled its job.
    Cancelled,
    /// We stopped it because the lease was lost.
    Lost,
    /// We stopped it because we are to stop.
    Stopped,
}

/// All that is left of a program.
#[derive(Debug, Clone)]
pub(super) struct End {
    /// How it ended.
    pub(super) ended: Ended,
    /// The beginning of its standard output, one byte more than is allowed at most.
    pub(super) stdout: Vec<u8>,
    /// The end of its standard error.
    pub(super) stderr: Vec<u8>,
    /// What it told last, and was not sent yet.
    pub(super) progress: Option<Map<String, Value>>,
}

/// The report, as JSON; `None`: there is nobody to report to.
pub(super) fn report(lease: &str, end: End) -> Option<String> {
    let progress = end
        .progress
        .map_or_else(String::new, |progress| format!(",\"progress\":{}", Value::Object(progress)));
    let begin = format!("{{\"lease\":{}", Value::from(lease));
    let (outcome, rest) = match end.ended {
        Ended::Lost => return None,
        // Whatever is reported now ends the job as cancelled.
        Ended::Cancelled | Ended::Stopped => ("released", String::new()),
        Ended::NotStarted(why) => ("failed", error("cannot_start", &why, "", true)),
        Ended::Exited(Ok(0)) if end.stdout.len() > OUTPUT_MAX => {
            let text = format!("the program wrote more than {OUTPUT_MAX} bytes of result");
            ("failed", error("result_too_large", &text, "", false))
        }
        Ended::Exited(Ok(0)) => ("succeeded", format!(",\"result\":{}", result(&end.stdout))),
        Ended::Exited(code) => {
            let stderr = String::from_utf8_lossy(&end.stderr).replace('\0', "\u{fffd}");
            let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
            let mut text = match code {
                Ok(code) => format!("the program ended with exit code {code}"),
                Err(signal) => format!("the program was killed by signal {signal}"),
            };
            if !last.is_empty() {
                let from = last.ceil_char_boundary(last.len().saturating_sub(MESSAGE_MAX));
                // Writing to a String cannot fail.
                let _ = write!(text, ": {}", &last[from..]);
            }
            ("failed", error("exit_code", &text, &stderr, code != Ok(FAILED_FOR_GOOD)))
        }
    };
    Some(format!("{begin},\"outcome\":\"{outcome}\"{rest}{progress}}}"))
}

fn error(code: &str, message: &str, traceback: &str, retryable: bool) -> String {
    let traceback = if traceback.trim().is_empty() { Value::Null } else { Value::from(traceback) };
    let error = json!({ "code": code, "message": message, "traceback": traceback, "retryable": retryable });
    format!(",\"error\":{error}")
}

/// JSON stays what it is; other text becomes an object.
fn result(stdout: &[u8]) -> String {
    let text = String::from_utf8_lossy(stdout);
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return "null".to_owned();
    }
    let strict = validate(trimmed.as_bytes(), &JsonLimits { max_depth: DEPTH_MAX }).is_ok();
    if strict && serde_json::from_str::<&RawValue>(trimmed).is_ok() {
        return trimmed.to_owned();
    }
    json!({ "output": text.trim_end_matches('\n').replace('\0', "\u{fffd}") }).to_string()
}

/// A line of progress, as far as it makes sense: `percent`, `message`, `checkpoint`.
pub(super) fn progress(line: &str) -> Option<Map<String, Value>> {
    validate(line.as_bytes(), &JsonLimits { max_depth: DEPTH_MAX }).ok()?;
    let Value::Object(mut told) = serde_json::from_str(line).ok()? else { return None };
    told.retain(|name, value| match name.as_str() {
        "percent" => value.as_f64().is_some_and(|percent| (0.0..=100.0).contains(&percent)),
        "message" => value.as_str().is_some_and(|text| text.len() <= 1024),
        "checkpoint" => value.to_string().len() <= OUTPUT_MAX,
        _ => false,
    });
    (!told.is_empty()).then_some(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(ended: Ended, stdout: &str, stderr: &str) -> Value {
        let end = End { ended, stdout: stdout.into(), stderr: stderr.into(), progress: None };
        serde_json::from_str(&report("lse_x", end).expect("a report")).expect("JSON")
    }

    #[test]
    fn the_exit_code_says_what_became_of_the_job() {
        let exited = |code| reported(Ended::Exited(Ok(code)), "", "first\nlast\n\n");
        assert_eq!(exited(0), json!({ "lease": "lse_x", "outcome": "succeeded", "result": null }));
        assert_eq!(exited(65)["error"]["retryable"], false);
        let failed = exited(3);
        assert_eq!((&failed["outcome"], &failed["error"]["retryable"]), (&json!("failed"), &json!(true)));
        assert_eq!(failed["error"]["message"], "the program ended with exit code 3: last");
        assert_eq!(
            reported(Ended::Exited(Err(9)), "", "")["error"]["message"],
            "the program was killed by signal 9"
        );
    }

    #[test]
    fn a_result_stays_as_it_was_written_and_text_becomes_an_object() {
        for (stdout, result) in [
            (" {\"b\":1.0,\"a\":12345678901234567890}\n", r#"{"b":1.0,"a":12345678901234567890}"#),
            ("", "null"),
            ("done\n", r#"{"output":"done"}"#),
            ("{\"a\":1,\"a\":2}", r#"{"output":"{\"a\":1,\"a\":2}"}"#),
        ] {
            assert_eq!(super::result(stdout.as_bytes()), result);
        }
        let long = "x".repeat(OUTPUT_MAX + 1);
        assert_eq!(reported(Ended::Exited(Ok(0)), &long, "")["error"]["code"], "result_too_large");
    }

    #[test]
    fn what_was_stopped_is_given_back_and_what_was_lost_is_not_reported() {
        assert_eq!(reported(Ended::Stopped, "half", "")["outcome"], "released");
        let end = End { ended: Ended::Lost, stdout: Vec::new(), stderr: Vec::new(), progress: None };
        assert_eq!(report("lse_x", end), None);
    }

    #[test]
    fn progress_is_taken_as_far_as_it_makes_sense() {
        let told =
            progress(r#"{"percent": 40, "message": "m", "checkpoint": null, "stage": 7}"#).expect("progress");
        assert_eq!(Value::Object(told), json!({ "percent": 40, "message": "m", "checkpoint": null }));
        for line in ["", "40", r#"{"percent": 101}"#, "{"] {
            assert_eq!(progress(line), None, "{line}");
        }
    }
}
