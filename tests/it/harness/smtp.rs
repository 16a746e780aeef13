//! A mail server that keeps what it is given: SMTP (RFC 5321) as far as a client needs it, on a real socket.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::eventually;

/// A message as it came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mail {
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
    pub(crate) text: String,
}

impl Mail {
    /// A header's value, its lines joined; empty if it is not there.
    pub(crate) fn header(&self, name: &str) -> String {
        let head = self
            .text
            .split("\r\n\r\n")
            .next()
            .unwrap_or_default()
            .replace("\r\n ", " ")
            .replace("\r\n\t", " ");
        let line = head
            .lines()
            .find(|line| line.to_ascii_lowercase().starts_with(&format!("{}:", name.to_ascii_lowercase())));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    }
}

/// The server. To `RCPT` it answers with the scripted lines first, then with 250.
#[derive(Debug)]
pub(crate) struct MailServer {
    address: SocketAddr,
    mails: Arc<Mutex<Vec<Mail>>>,
}

impl MailServer {
    pub(crate) async fn start(answers: &[&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mails = Arc::<Mutex<Vec<Mail>>>::default();
        let answers = Arc::new(Mutex::new(answers.iter().rev().copied().collect::<Vec<_>>()));
        let kept = mails.clone();
        #[expect(clippy::disallowed_methods, reason = "it ends with the runtime of its test")]
        tokio::task::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                #[expect(clippy::disallowed_methods, reason = "it ends with the runtime of its test")]
                tokio::task::spawn(serve(stream, kept.clone(), answers.clone()));
            }
        });
        Self { address, mails }
    }

    pub(crate) fn url(&self) -> String {
        format!("smtp://{}", self.address)
    }

    pub(crate) fn mails(&self) -> Vec<Mail> {
        self.mails.lock().expect("no panic").clone()
    }

    pub(crate) async fn nth(&self, number: usize) -> Mail {
        eventually("a mail arrives", async || self.mails(), |mails| mails.len() >= number).await[number - 1]
            .clone()
    }
}

async fn serve(
    stream: TcpStream,
    mails: Arc<Mutex<Vec<Mail>>>,
    answers: Arc<Mutex<Vec<&'static str>>>,
) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    write.write_all(b"220 sink ESMTP\r\n").await?;
    let mut mail = Mail::default();
    while let Some(line) = lines.next_line().await? {
        let upper = line.to_ascii_uppercase();
        let answer = if upper.starts_with("EHLO") {
            "250-sink\r\n250-8BITMIME\r\n250 SMTPUTF8"
        } else if upper.starts_with("MAIL FROM:") {
            mail = Mail {
                from: line[10..].split_whitespace().next().unwrap_or_default().to_owned(),
                ..Mail::default()
            };
            "250 ok"
        } else if upper.starts_with("RCPT TO:") {
            mail.to.push(line[8..].split_whitespace().next().unwrap_or_default().to_owned());
            answers.lock().expect("no panic").pop().unwrap_or("250 ok")
        } else if upper == "DATA" {
            write.write_all(b"354 go on\r\n").await?;
            while let Some(line) = lines.next_line().await? {
                if line == "." {
                    break;
                }
                mail.text.push_str(line.strip_prefix('.').unwrap_or(&line));
                mail.text.push_str("\r\n");
            }
            mails.lock().expect("no panic").push(std::mem::take(&mut mail));
            "250 kept"
        } else if upper == "QUIT" {
            write.write_all(b"221 bye\r\n").await?;
            return Ok(());
        } else {
            "250 ok"
        };
        write.write_all(format!("{answer}\r\n").as_bytes()).await?;
    }
    Ok(())
}
