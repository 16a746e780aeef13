//! `ringback verify`: checks the signature of a message that a receiver got, and says why it does not match.
//!
//! For the author of a receiver. `headers` reads raw header lines, `diagnosis` finds the reason, `variants` makes the
//! bodies that a framework may have made of the one that was sent. Called by `cli`. Talks to no service.
//! `verify worker` is a subcommand beside these arguments, in a file of its own.
//!
//! Invariant: `verified` is said only of what `signing::verify` accepts; a guess never turns into a pass, and the secret
//! is never shown.

mod diagnosis;
mod headers;
mod variants;
pub mod worker;

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use self::diagnosis::{Message, diagnose};
use super::output::Style;
use super::{Failure, output};
use crate::clock;
use crate::secret::Secret;
use crate::signing::VerifyingKey;

/// Nothing that we send is as large; a wrong file is not read to its end.
const INPUT_MAX_BYTES: u64 = 32 * 1024 * 1024;
/// What is read from the standard input.
const STDIN: &str = "-";

const EXAMPLES: &str = "\
Examples:
  export RINGBACK_SIGNING_SECRET=whsec_…
  ringback verify --id evt_… --timestamp 1764547200 --signature 'v1,…' < body.json
  ringback verify --headers headers.txt --body body.json
  ringback verify --headers headers.txt --body body.json --no-tolerance
  ringback verify --secret whpk_… --headers headers.txt --body body.json

The secret of a callback_url is at GET /v1/callback-secret, that of an endpoint at GET /v1/endpoints/{id}/secret; an \
endpoint that signs with ed25519 (v1a) shows its public_key there, whpk_…, which verifies as well. \
headers.txt holds lines such as \"webhook-id: evt_…\"; the output of curl -v will do. The body must be the bytes as \
they arrived: write them to a file before anything parses them.

Exit codes: 0 verified, 1 not verified (the reason is said), 2 wrong usage.";

/// What the verb takes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Verify {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    message: SignedMessage,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Play the hard cases against a worker: slow, cancelled, lost lease, lost answer, outage
    Worker(worker::VerifyWorker),
}

/// A message and the secret that it was signed with.
#[derive(Debug, Args)]
struct SignedMessage {
    /// The receiver's secret, or its public key (whpk_…)
    #[arg(long, visible_alias = "public-key", env = "RINGBACK_SIGNING_SECRET", hide_env_values = true, value_name = "whsec_…", value_parser = parse_secret, required = true)]
    secret: Option<SecretText>,
    /// A file of raw header lines, in place of the next three
    #[arg(long, value_name = "FILE", conflicts_with_all = ["id", "timestamp", "signature"])]
    headers: Option<PathBuf>,
    /// The header webhook-id
    #[arg(long, value_name = "ID", required_unless_present = "headers")]
    id: Option<String>,
    /// The header webhook-timestamp
    #[arg(long, value_name = "SECONDS", required_unless_present = "headers")]
    timestamp: Option<String>,
    /// The header webhook-signature
    #[arg(long, value_name = "v1,… v1a,…", required_unless_present = "headers")]
    signature: Option<String>,
    /// The body's bytes as they arrived; - is the standard input
    #[arg(long, value_name = "FILE", default_value = STDIN)]
    body: PathBuf,
    /// How many seconds the timestamp may be away from now
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    tolerance: u32,
    /// Accept any timestamp
    #[arg(long, conflicts_with = "tolerance")]
    no_tolerance: bool,
}

/// The secret as it was written, kept from every `Debug`.
#[derive(Debug, Clone)]
struct SecretText(Secret<String>);

/// Checks what is needed later as well, so that a wrong secret is wrong usage; the error does not repeat it.
fn parse_secret(text: &str) -> Result<SecretText, crate::signing::SecretError> {
    let _: VerifyingKey = text.trim().parse()?;
    Ok(SecretText(Secret::new(text.trim().to_owned())))
}

/// Verifies.
/// # Errors
/// It does not match, and why; or a file cannot be read.
pub async fn run(verify: &Verify, style: Style) -> Result<(), Failure> {
    match &verify.what {
        Some(What::Worker(worker)) => worker::run(worker, style).await,
        None => check(&verify.message),
    }
}

fn check(verify: &SignedMessage) -> Result<(), Failure> {
    let Some(secret) = &verify.secret else {
        return Err(Failure::usage("name the receiver's secret with --secret"));
    };
    let stdin = Path::new(STDIN);
    if verify.body == stdin && verify.headers.as_deref() == Some(stdin) {
        return Err(Failure::usage(
            "headers and body cannot both come from the standard input; give --body FILE",
        ));
    }
    let found = match &verify.headers {
        Some(file) => headers::parse(&String::from_utf8_lossy(&read(file)?)).map_err(Failure::no)?,
        None => headers::Signed {
            id: verify.id.clone(),
            timestamp: verify.timestamp.clone(),
            signature: verify.signature.clone(),
        },
    };
    let body = read(&verify.body)?;
    let message = Message {
        id: found.id.as_deref(),
        timestamp: found.timestamp.as_deref(),
        signature: found.signature.as_deref(),
        body: &body,
    };
    let tolerance_s = if verify.no_tolerance { u32::MAX } else { verify.tolerance };
    match diagnose(secret.0.expose(), message, clock::now().timestamp(), tolerance_s) {
        Ok(()) => {
            output::say("verified");
            Ok(())
        }
        Err(reasons) => Err(Failure::no(format!("not verified: {}", reasons.join("\n")))),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let done = if file == Path::new(STDIN) {
        std::io::stdin().lock().take(INPUT_MAX_BYTES + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(INPUT_MAX_BYTES + 1).read_to_end(&mut bytes))
    };
    done.map_err(|error| Failure::usage(format!("cannot read {}: {error}", file.display())))?;
    if bytes.len() as u64 > INPUT_MAX_BYTES {
        return Err(Failure::usage(format!("{} is too large to be a message", file.display())));
    }
    Ok(bytes)
}
