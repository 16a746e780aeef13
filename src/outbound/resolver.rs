//! DNS for the guarded client: a resolver that judges every address before anything connects.
//!
//! Called by the client's connector for names only: it never asks for IP literals, which `target` judges. The
//! connector connects to exactly the addresses that this resolver hands out, so there is no second lookup to rebind.
//!
//! Invariant: a name with one refused address is refused altogether; a name that resolves to nothing is another
//! error than a name that is blocked.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{BoxFuture, FutureExt as _, Shared, TryFutureExt as _, WeakShared};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::error::{BlockedName, LookupFailed};
use super::timing;
use crate::target::{OutboundPolicy, Transport, is_reachable_by};

/// How many addresses of one name are tried; all of them are judged.
const ADDRESSES_MAX: usize = 8;

/// Turns a name into addresses. The system's in production, a table in tests.
pub trait Dns: Send + Sync + 'static {
    /// All addresses of `host`, in order of preference. No addresses is an error, or an empty list.
    fn lookup(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The system's resolver: `/etc/hosts`, `/etc/resolv.conf` and what else it is configured for.
///
/// It takes a thread for each lookup, and a name server that does not answer holds it for many seconds; so requests
/// that ask for the same name at the same time share one lookup. Answers are not kept beyond that.
#[derive(Default)]
pub struct SystemDns {
    in_flight: Mutex<HashMap<String, WeakShared<Lookup>>>,
}

type Lookup = BoxFuture<'static, Result<Vec<IpAddr>, Arc<io::Error>>>;

/// Beyond this number of names, the ones whose lookup has ended are swept out.
const IN_FLIGHT_SWEEP: usize = 256;

impl SystemDns {
    fn joined(&self, host: &str) -> Shared<Lookup> {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lookup) = in_flight.get(host).and_then(WeakShared::upgrade) {
            return lookup;
        }
        if in_flight.len() >= IN_FLIGHT_SWEEP {
            in_flight.retain(|_, lookup| lookup.upgrade().is_some());
        }
        let lookup = system_lookup(host.to_owned()).boxed().shared();
        if let Some(weak) = lookup.downgrade() {
            in_flight.insert(host.to_owned(), weak);
        }
        lookup
    }
}

impl Dns for SystemDns {
    fn lookup(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        self.joined(host).map_err(io::Error::other).boxed()
    }
}

async fn system_lookup(host: String) -> Result<Vec<IpAddr>, Arc<io::Error>> {
    let found = tokio::net::lookup_host((host, 0)).await.map_err(Arc::new)?;
    Ok(found.map(|address| address.ip()).collect())
}

/// One for each transport, because a resolver is not told for which URL it is asked.
pub(super) struct JudgingResolver {
    pub(super) dns: Arc<dyn Dns>,
    pub(super) policy: Arc<OutboundPolicy>,
    pub(super) transport: Transport,
}

impl Resolve for JudgingResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let lookup = self.dns.lookup(name.as_str());
        let (policy, transport) = (Arc::clone(&self.policy), self.transport);
        Box::pin(async move {
            timing::mark(|marks, now| marks.dns_began = Some(now));
            let found = lookup.await;
            timing::mark(|marks, now| marks.dns_ended = Some(now));
            let addresses = found.map_err(|error| LookupFailed(Some(error)))?;
            if addresses.is_empty() {
                return Err(LookupFailed(None).into());
            }
            if !addresses.iter().all(|ip| is_reachable_by(transport, *ip, &policy)) {
                return Err(BlockedName.into());
            }
            timing::mark(|marks, now| marks.dns_passed = Some(now));
            let sockets = addresses.into_iter().take(ADDRESSES_MAX).map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(sockets) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_system_knows_localhost_and_not_what_cannot_be() {
        let dns = SystemDns::default();
        let (first, second) = tokio::join!(dns.lookup("localhost"), dns.lookup("localhost"));
        let found = first.expect("localhost is known everywhere");
        assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty());
        assert_eq!(second.expect("the same lookup"), found);
        assert!(dns.lookup("a..b").await.is_err());
    }

    #[test]
    fn simultaneous_lookups_of_a_name_are_one_and_ended_ones_are_swept() {
        let dns = SystemDns::default();
        let first = dns.joined("a.example");
        assert!(first.ptr_eq(&dns.joined("a.example")));
        assert!(!first.ptr_eq(&dns.joined("b.example")));
        for n in 0..2 * IN_FLIGHT_SWEEP {
            drop(dns.joined(&format!("{n}.example")));
        }
        assert!(dns.in_flight.lock().expect("no panic").len() <= IN_FLIGHT_SWEEP);
        assert!(first.ptr_eq(&dns.joined("a.example")));
    }
}
