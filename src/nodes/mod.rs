//! Nodes: the running processes, who of them is alive, and which lanes each owns.
//!
//! A node holds a session advisory lock while it lives; PostgreSQL frees it the moment the process dies, so a restart
//! takes over within seconds. A node that cannot be heard at all is given up when its row expires. Called by
//! `engine::heartbeat` and `engine::reap_nodes`. What nodes tell each other goes by `call_store`.
//!
//! Invariant: a node that was declared dead owns no lane, and nothing that it still writes counts.

pub mod call_store;
pub mod store;

use std::time::Duration;

use uuid::Uuid;

use crate::ids::fresh_uuid;

/// Into so many lanes the receivers are divided; each lane has one owner among the nodes.
pub const LANES: i16 = 64;

/// How often a node says that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// After so long without a sign, a node counts as dead even if its connection seems to live.
pub const EXPIRY: Duration = Duration::from_secs(30);
/// After so long without a sign, a free presence lock proves death. It covers the moment in which a node reconnects.
pub const QUIET: Duration = Duration::from_millis(2500);

/// This process.
#[derive(Debug, Clone)]
pub struct Node {
    /// New at each start.
    pub id: Uuid,
    /// Host and process, for people.
    pub name: String,
    /// Sends deliveries, and takes its share of the lanes.
    pub dispatcher: bool,
}

impl Node {
    /// A new one.
    pub fn fresh(dispatcher: bool) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { id: fresh_uuid(), name: format!("{host}:{}", std::process::id()), dispatcher }
    }

    /// The key of the presence lock: the random half of the id.
    pub fn lock_key(&self) -> i64 {
        self.id.as_u128() as i64
    }
}
