//! How the demo looks: one screen, two columns, the time that has passed and what happened.
//!
//! Called by `demo` and `story`. Prints through `output` only. Decides nothing about the story.

use std::time::{Duration, Instant};

use super::super::output::{self, Style};

/// A body is shown whole up to this length.
const BODY_SHOWN_BYTES: usize = 1_000;
/// Where the second column begins.
const INDENT: &str = "          ";
/// The width of a header's name.
const NAME_WIDTH: usize = 18;

/// The screen. Time begins when the service is ready.
#[derive(Debug)]
pub(super) struct Screen {
    /// How words stand out.
    pub(super) style: Style,
    began: Instant,
    started_in: Duration,
}

impl Screen {
    /// From now on. `started_in` is how long the start took.
    pub(super) fn begin(style: Style, started_in: Duration) -> Self {
        Self { style, began: Instant::now(), started_in }
    }

    /// The service can be called.
    pub(super) fn ready(&self, api: &str, database: &str) {
        let aside = format!("({database}, started in {:.1} s)", self.started_in.as_secs_f64());
        self.step(&format!("service ready on {api} {}", self.style.faint(&aside)));
    }

    /// Something happened just now.
    pub(super) fn step(&self, text: &str) {
        let time = format!("{:>6.2} s", self.began.elapsed().as_secs_f64());
        output::say(&format!("{}  {text}", self.style.faint(&time)));
    }

    /// A part of what happened.
    pub(super) fn detail(&self, name: &str, value: &str) {
        let name = format!("{name:NAME_WIDTH$}");
        output::say(&format!("{INDENT}{} {value}", self.style.faint(&name)));
    }

    /// It is as it should be.
    pub(super) fn proven(&self, text: &str) {
        output::say(&format!("{INDENT}{} {text}", self.style.good("✓")));
    }
}

/// A body as it arrived; a very long one is cut.
pub(super) fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    if text.len() <= BODY_SHOWN_BYTES {
        return text.into_owned();
    }
    let end = text.floor_char_boundary(BODY_SHOWN_BYTES);
    format!("{}… ({} bytes in all)", &text[..end], body.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_very_long_body_is_cut_and_never_within_a_character() {
        assert_eq!(shown(b"{\"a\":1}"), "{\"a\":1}");
        let long = "ü".repeat(600);
        let cut = shown(format!("x{long}").as_bytes());
        assert!(cut.starts_with("xü") && cut.ends_with("ü… (1201 bytes in all)"), "{cut}");
    }
}
