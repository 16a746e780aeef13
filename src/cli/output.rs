//! The only place that prints. Colours only on a terminal, and never with `NO_COLOR`.
//!
//! Called by every verb. A reader that has gone away (`ringback doctor | head -1`) is no error: what it no longer
//! reads is not printed. Knows nothing of what the lines say.

use std::io::{IsTerminal, Write};

/// A line of the answer.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// What went wrong, on the standard error.
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "ringback: {text}");
}

/// How words stand out: by colour on a terminal, not at all elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    colours: bool,
}

impl Style {
    /// Colours if the standard output is a terminal and nobody said `NO_COLOR`.
    pub fn of_stdout(no_color: NoColor) -> Self {
        Self { colours: !no_color.0 && std::io::stdout().is_terminal() }
    }

    /// Never colours.
    pub fn plain() -> Self {
        Self { colours: false }
    }

    /// It went well: green.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Worth a look: yellow.
    pub fn doubtful(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// It went wrong: red.
    pub fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// Less important: dim.
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// More important: bold.
    pub fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Select Graphic Rendition (ECMA-48, section 8.3.117).
    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Whether somebody wants no colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoColor(pub bool);

/// What a program of the user's wrote to its standard error, as it came.
pub fn pass_on(bytes: &[u8]) {
    let _ = std::io::stderr().lock().write_all(bytes);
}

/// What is being done, on the standard error.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_colours_a_text_stays_as_it_is() {
        assert_eq!(Style::plain().good("ok"), "ok");
        assert_eq!(Style { colours: true }.good("ok"), "\x1b[32mok\x1b[0m");
    }
}
