//! The bare loop: what one signed POST costs without a service and without a database. The yardstick of a run.
//!
//! The same message as a delivery has (built and signed anew each time), the same client, the same receiver, as many
//! at a time as the dispatcher has on the wire to one receiver. Whatever the service costs above this is ours to lower.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::clock;
use crate::deliveries::message::{self, Envelope};
use crate::ids::{DeliveryId, EventId};
use crate::outbound::{GuardedClient, OutboundRequest, SystemDns};
use crate::signing::{SignatureKind, SigningKey};
use crate::target::{OutboundPolicy, TargetUrl, parse_target};

/// The dispatcher's limit to one receiver.
pub(super) const AT_A_TIME: usize = 32;
const TIMEOUT: Duration = Duration::from_secs(15);

/// Which client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// The dispatcher's.
    Guarded,
    /// reqwest as it comes.
    Plain,
}

/// What the loop did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) posts: u64,
    pub(super) failed: u64,
    pub(super) elapsed: Duration,
}

#[derive(Clone)]
enum Sender {
    Guarded(GuardedClient, TargetUrl),
    Plain(reqwest::Client, reqwest::Url),
}

/// Posts for so long, on a runtime of its own, as the service has one.
pub(super) async fn run(client: Client, receiver: SocketAddr, data: Bytes, seconds: f64) -> io::Result<Done> {
    let sender = sender(client, receiver)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().thread_name("bench-bare").enable_all().build()?;
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().name("bench-bare".to_owned()).spawn(move || {
        // Who asked may have been interrupted.
        let _ = tell.send(runtime.block_on(post_all(sender, data, Duration::from_secs_f64(seconds))));
    })?;
    told.await.map_err(|_| io::Error::other("the bare loop's thread died"))
}

fn sender(client: Client, receiver: SocketAddr) -> io::Result<Sender> {
    let url = format!("http://{receiver}/bare");
    let allow = "127.0.0.0/8".parse().map_err(io::Error::other)?;
    let policy = OutboundPolicy { allow_networks: vec![allow], allow_http: false };
    match client {
        Client::Guarded => {
            let target =
                parse_target(&url, &policy).map_err(|refusal| io::Error::other(refusal.to_string()))?;
            let client =
                GuardedClient::new(policy, Arc::new(SystemDns::default())).map_err(io::Error::other)?;
            Ok(Sender::Guarded(client, target))
        }
        Client::Plain => {
            // Somebody may have installed one already.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let client = reqwest::Client::builder().no_proxy().build().map_err(io::Error::other)?;
            Ok(Sender::Plain(client, url.parse().map_err(io::Error::other)?))
        }
    }
}

async fn post_all(sender: Sender, data: Bytes, duration: Duration) -> Done {
    let began = Instant::now();
    let secrets = Arc::new(vec![SigningKey::from_random(SignatureKind::HmacSha256, rand::random())]);
    let mut posters = JoinSet::new();
    for _ in 0..AT_A_TIME {
        let (sender, data, secrets) = (sender.clone(), data.clone(), secrets.clone());
        posters.spawn(async move {
            let (mut posts, mut failed) = (0, 0);
            while began.elapsed() < duration {
                if post(&sender, &data, &secrets).await { posts += 1 } else { failed += 1 }
            }
            (posts, failed)
        });
    }
    let (mut posts, mut failed) = (0, 0);
    for (good, bad) in posters.join_all().await {
        posts += good;
        failed += bad;
    }
    Done { posts, failed, elapsed: began.elapsed() }
}

async fn post(sender: &Sender, data: &[u8], secrets: &[SigningKey]) -> bool {
    let event = EventId::fresh();
    let body = message::body(event, "job.succeeded", data);
    let envelope = Envelope {
        event,
        delivery: DeliveryId::fresh(),
        attempt: 1,
        now: clock::now(),
        secrets,
        custom: &BTreeMap::new(),
        traceparent: None,
    };
    let headers = message::headers(&envelope, &body);
    match sender {
        Sender::Guarded(client, url) => {
            let request = OutboundRequest {
                method: http::Method::POST,
                url: url.clone(),
                headers,
                body,
                timeout: TIMEOUT,
                keep_body_max: 16 * 1024,
                read_body_max: 64 * 1024,
            };
            client.send(request).await.result.is_ok_and(|answer| answer.status == 200)
        }
        Sender::Plain(client, url) => {
            let request = client.post(url.clone()).headers(headers).body(body).timeout(TIMEOUT);
            let Ok(answer) = request.send().await else { return false };
            answer.status() == 200 && answer.bytes().await.is_ok()
        }
    }
}
