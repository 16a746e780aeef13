//! The only place that prints. Colours only on a terminal, and never with `NO_COLOR`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is where the command line talks")]

/// A line of the answer.
pub fn say(line: &str) {
    println!("{line}");
}

/// What went wrong, on the standard error.
pub fn complain(text: &str) {
    eprintln!("ringback: {text}");
}

/// What is being done, on the standard error.
pub fn note(text: &str) {
    eprintln!("{text}");
}
