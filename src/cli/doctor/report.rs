//! How the doctor's findings are shown: two columns for people, as they come, or one list for machines.
//!
//! Called by the other files of this folder. Prints through `output` only; judges nothing.

use serde::Serialize;

use super::super::output::{self, Style};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// As it should be.
    Ok,
    /// It works, and will not for ever or not as well as it could.
    Warn,
    /// It does not work, or data may be lost.
    Fail,
}

/// One finding.
#[expect(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) check: &'static str,
    pub(super) status: Status,
    pub(super) finding: String,
    pub(super) fix: Option<String>,
}

impl Check {
    /// As it should be.
    pub(super) fn ok(check: &'static str, finding: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, finding: finding.into(), fix: None }
    }
    /// Worth a look.
    pub(super) fn warn(check: &'static str, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, status: Status::Warn, finding: finding.into(), fix: Some(fix.into()) }
    }
    /// Wrong.
    pub(super) fn fail(check: &'static str, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, status: Status::Fail, finding: finding.into(), fix: Some(fix.into()) }
    }
}

/// All findings.
#[derive(Debug)]
pub(super) struct Report {
    style: Style,
    json: bool,
    checks: Vec<Check>,
}

impl Report {
    /// An empty one.
    pub(super) fn open(style: Style, json: bool) -> Self {
        Self { style, json, checks: Vec::new() }
    }

    /// Adds a finding, and shows it at once to people.
    pub(super) fn add(&mut self, check: Check) {
        if !self.json {
            for line in lines(&check, self.style) {
                output::say(&line);
            }
        }
        self.checks.push(check);
    }

    /// Adds several.
    pub(super) fn add_all(&mut self, checks: impl IntoIterator<Item = Check>) {
        checks.into_iter().for_each(|check| self.add(check));
    }

    /// Shows what is not shown yet. Returns how many failed.
    pub(super) fn end(self) -> usize {
        if self.json {
            // Strings and an enum: nothing in it can fail to be written.
            output::say(&serde_json::to_string_pretty(&self.checks).unwrap_or_default());
        }
        self.checks.iter().filter(|check| check.status == Status::Fail).count()
    }
}

fn lines(check: &Check, style: Style) -> Vec<String> {
    let mark = match check.status {
        Status::Ok => style.good("ok  "),
        Status::Warn => style.doubtful("warn"),
        Status::Fail => style.bad("FAIL"),
    };
    let indented = |text: &str| text.replace('\n', "\n        ");
    let mut lines = vec![format!("  {mark}  {}: {}", check.check, indented(&check.finding))];
    if let Some(fix) = &check.fix {
        lines.push(format!("        {} {}", style.faint("→"), indented(fix)));
    }
    lines
}

/// A time span for people: one unit, no more exact than anybody wants to know.
pub(super) fn span(seconds: f64) -> String {
    let seconds = if seconds.is_finite() { seconds.max(0.0).round() as u64 } else { 0 };
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A number with its thousands apart.
pub(super) fn number(count: i64) -> String {
    let digits = count.unsigned_abs().to_string();
    let mut shown = String::with_capacity(digits.len() * 4 / 3 + 1);
    if count < 0 {
        shown.push('-');
    }
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_shown_in_one_unit() {
        let shown = [-1.0, 0.4, 119.0, 120.0, 7_199.0, 7_200.0, 172_799.0, 172_800.0, f64::NAN].map(span);
        assert_eq!(shown, ["0 s", "0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 days", "0 s"]);
    }

    #[test]
    fn numbers_have_their_thousands_apart() {
        assert_eq!([0, 999, 1_000, -1_234_567].map(number), ["0", "999", "1,000", "-1,234,567"]);
    }

    #[test]
    fn a_finding_takes_two_lines_when_there_is_something_to_do() {
        let style = Style::plain();
        let check = Check::warn("open files", "1,024 at most", "ulimit -n 65536");
        assert_eq!(lines(&check, style), ["  warn  open files: 1,024 at most", "        → ulimit -n 65536"]);
        assert_eq!(lines(&Check::ok("a", "b"), style), ["  ok    a: b"]);
    }
}
