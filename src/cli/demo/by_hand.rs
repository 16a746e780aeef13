//! What to type next: the demo's steps as commands that work as they stand.
//!
//! Called by `demo` at the end of the story. Shows no key: the commands read it from where it lies.

use std::path::PathBuf;

use super::super::output::{self, Style};

/// What the commands are made of.
#[derive(Debug, Clone)]
pub(super) struct ByHand {
    /// Where the service listens.
    pub(super) api: String,
    /// Where the demo's own web service and receiver are.
    pub(super) own: String,
    /// Where the API key is kept; `None`: the user gave it.
    pub(super) key_file: Option<PathBuf>,
}

impl ByHand {
    /// Shows them. With `keep` the demo's own service stays, else one has to be started.
    pub(super) fn show(&self, keep: bool, style: Style) {
        let program = program();
        if keep {
            output::say("\nDo the same by hand; each callback will be shown here. Ctrl-C ends it.");
        } else {
            output::say(&format!(
                "\nDo the same by hand (or keep this one running: {}):",
                style.strong(&format!("{program} demo --keep"))
            ));
        }
        for line in self.lines(keep, &program) {
            output::say(&format!("  {line}"));
        }
        if keep {
            output::say("");
        }
    }

    fn lines(&self, keep: bool, program: &str) -> Vec<String> {
        let mut lines = Vec::new();
        let (api, report, callback) = if keep {
            (self.api.clone(), format!("{}/report", self.own), format!("{}/callback", self.own))
        } else {
            lines.push(format!("{program} serve --allow-networks 127.0.0.0/8     # in another terminal"));
            let api = "http://127.0.0.1:8080".to_owned();
            (api.clone(), format!("{api}/livez"), "http://127.0.0.1:3000/your-receiver".to_owned())
        };
        let key = match &self.key_file {
            Some(file) => format!(" RINGBACK_API_KEY=$(cat {})", quoted(&file.display().to_string())),
            None => String::new(),
        };
        lines.push(format!("export RINGBACK_URL={api}{key}"));
        lines.push(
            "curl -s $RINGBACK_URL/v1/jobs -H \"Authorization: Bearer $RINGBACK_API_KEY\" \\".to_owned(),
        );
        lines.push(format!(
            "  -H 'Content-Type: application/json' -d '{{\"kind\": \"http\", \"input\": {{\"method\": \"GET\", \"url\": \"{report}\"}}, \"callback_url\": \"{callback}\"}}'"
        ));
        lines.push(
            "curl -s $RINGBACK_URL/v1/deliveries -H \"Authorization: Bearer $RINGBACK_API_KEY\"".to_owned(),
        );
        lines
    }
}

/// This program as the user called it.
pub(super) fn program() -> String {
    let name = std::env::args().next().filter(|name| !name.is_empty());
    quoted(&name.unwrap_or_else(|| "ringback".to_owned()))
}

/// For a shell.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_read_where_it_lies_and_never_shown() {
        let by_hand = ByHand {
            api: "http://127.0.0.1:4711".to_owned(),
            own: "http://127.0.0.1:4712".to_owned(),
            key_file: Some("my data/api-key".into()),
        };
        let kept = by_hand.lines(true, "ringback").join("\n");
        assert!(
            kept.contains(
                "export RINGBACK_URL=http://127.0.0.1:4711 RINGBACK_API_KEY=$(cat 'my data/api-key')"
            )
        );
        assert!(kept.contains("\"callback_url\": \"http://127.0.0.1:4712/callback\""), "{kept}");
        let ended = by_hand.lines(false, "ringback").join("\n");
        assert!(ended.starts_with("ringback serve") && !ended.contains("4711"), "{ended}");
    }

    #[test]
    fn a_path_is_quoted_only_where_a_shell_needs_it() {
        assert_eq!(quoted("./.ringback/api-key"), "./.ringback/api-key");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
