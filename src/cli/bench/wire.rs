//! HTTP/1.1 messages on a kept-alive connection, as little of it as the bench needs: a head, `content-length`, a body.
//!
//! Called by `load` (answers) and `receiver` (requests). Made by hand because what measures must cost much less than
//! what is measured, on the same cores. Knows no chunked bodies: neither our API nor our client sends any.
//!
//! Invariant: a message is handed out when all of it has arrived, and nothing of the next one is lost.

use std::io;
use std::net::SocketAddr;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The largest message that is read: an answer to a batch of a thousand jobs has a few megabytes.
const MESSAGE_MAX_BYTES: usize = 64 * 1024 * 1024;

/// A connection with what was read ahead.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    buffer: BytesMut,
    taken: usize,
}

/// A whole message, in the connection's buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    /// The first line and the headers, with the empty line.
    pub(super) head: &'a [u8],
    /// The body.
    pub(super) body: &'a [u8],
}

impl Wire {
    /// Connects.
    pub(super) async fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::on(TcpStream::connect(address).await?)
    }

    /// Takes an accepted connection.
    pub(super) fn on(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: BytesMut::with_capacity(8 * 1024), taken: 0 })
    }

    /// Writes bytes.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Reads the next message; `None` when the peer has closed between two of them.
    pub(super) async fn read(&mut self) -> io::Result<Option<Message<'_>>> {
        self.buffer.advance(std::mem::take(&mut self.taken));
        let mut looked_at = 0;
        let head_len = loop {
            if let Some(end) = end_of_head(&self.buffer, looked_at) {
                break end;
            }
            looked_at = self.buffer.len().saturating_sub(3);
            if !self.fill().await? {
                return if self.buffer.is_empty() { Ok(None) } else { Err(cut_off()) };
            }
        };
        let length = header(&self.buffer[..head_len], "content-length");
        let body_len: usize = length.and_then(|text| text.parse().ok()).unwrap_or(0);
        if body_len > MESSAGE_MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too large"));
        }
        let whole = head_len + body_len;
        self.buffer.reserve(whole.saturating_sub(self.buffer.len()));
        while self.buffer.len() < whole {
            if !self.fill().await? {
                return Err(cut_off());
            }
        }
        self.taken = whole;
        Ok(Some(Message { head: &self.buffer[..head_len], body: &self.buffer[head_len..whole] }))
    }

    async fn fill(&mut self) -> io::Result<bool> {
        if self.buffer.len() > MESSAGE_MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too large"));
        }
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed within a message")
}

fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    bytes.get(from..)?.windows(4).position(|four| four == b"\r\n\r\n").map(|place| from + place + 4)
}

/// The value of a header; the name in lower case.
pub(super) fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    head.split(|byte| *byte == b'\n').skip(1).find_map(|line| {
        let (found, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":")?;
        found.eq_ignore_ascii_case(name.as_bytes()).then(|| std::str::from_utf8(value).ok().map(str::trim))?
    })
}

/// The status of an answer; 0 when there is none.
pub(super) fn status(head: &[u8]) -> u16 {
    let digits = head.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_whatever_the_case_of_its_names() {
        let head = b"HTTP/1.1 202 Accepted\r\nContent-Length: 12\r\nx-content-length: 3\r\n\r\n";
        assert_eq!(status(head), 202);
        assert_eq!(header(head, "content-length"), Some("12"));
        assert_eq!(header(head, "content"), None);
        assert_eq!(end_of_head(head, 0), Some(head.len()));
    }

    #[tokio::test]
    async fn messages_that_arrive_in_pieces_or_together_are_told_apart() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("address");
        let (client, accepted) = tokio::join!(Wire::connect(address), listener.accept());
        let (mut client, mut server) =
            (client.expect("client"), Wire::on(accepted.expect("peer").0).expect("server"));
        let first = "POST /a HTTP/1.1\r\ncontent-length: 3\r\n\r\nabcGET /b HT";
        client.send(first.as_bytes()).await.expect("sent");
        assert_eq!(server.read().await.expect("read").expect("message").body, b"abc");
        client.send(b"TP/1.1\r\n\r\n").await.expect("sent");
        assert!(server.read().await.expect("read").expect("message").head.starts_with(b"GET /b HTTP/1.1"));
        drop(client);
        assert!(server.read().await.expect("read").is_none());
    }
}
