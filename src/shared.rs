//! What every edge and every loop is handed: a plain struct, built once by `app`.
//!
//! Knows neither HTTP nor loops. Holds handles that are cheap to clone; whatever has behaviour lives in its own room.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::config::Config;
use crate::courtesy::{Courtesy, Stream};
use crate::db::Db;
use crate::db::batch::Batcher;
use crate::db::gate::{Gate, Pass};
use crate::deliveries::hand_off::HandOff;
use crate::deliveries::store::Record;
use crate::endpoints::book::EndpointBook;
use crate::events::bells::Bells;
use crate::events::publish::{Publish, Published};
use crate::executors::ExecutorTable;
use crate::idempotency::Running;
use crate::ids::{JobId, TenantId};
use crate::jobs::finish::Finish;
use crate::jobs::new_job::Context;
use crate::jobs::queue_limit::QueueLimits;
use crate::jobs::store::{Accept, Accepted};
use crate::jobs::waiters::Waiters;
use crate::jobs::{Callback, CallbackOptions};
use crate::nodes::Node;
use crate::outbound::GuardedClient;
use crate::secret::{SealContext, SealError, Sealer};
use crate::secrets::SecretCache;
use crate::supervisor::{Stop, Tasks};
use crate::tenants::Caller;
use crate::wakeups::Wakeups;
use crate::workers::parcel::Receipts;
use crate::workers::sightings::Sightings;
use crate::workers::waiting::WaitingWorkers;

/// The keys that are valid, by hash.
pub type KeyRing = RwLock<HashMap<[u8; 32], Caller>>;

/// Everything that is shared.
#[derive(Debug)]
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// The database.
    pub db: Db,
    /// Seals and opens secrets.
    pub sealer: Sealer,
    /// This process.
    pub node: Node,
    /// Where the API listens.
    pub address: std::net::SocketAddr,
    /// When to stop.
    pub stop: Stop,
    /// Requests under way.
    pub requests: tokio_util::task::TaskTracker,
    /// Runs database calls to their end.
    pub tasks: Tasks,
    /// The secrets that sign.
    pub secrets: SecretCache,
    /// All endpoints, in memory.
    pub endpoints: EndpointBook,
    /// The only way to a user's URL.
    pub client: GuardedClient,
    /// The built-in kinds.
    pub executors: ExecutorTable,
    /// What the operator's file says of queues.
    pub queue_limits: QueueLimits,
    /// Jobs on their way in.
    pub accept: Batcher<Accept, Accepted>,
    /// Events from outside on their way in.
    pub publish: Batcher<Publish, Published>,
    /// Ends of tries on their way in.
    pub finish: Batcher<Finish, bool>,
    /// Tries of deliveries on their way in.
    pub record: Batcher<Record, bool>,
    /// Where requests that bring many jobs or events wait for their turn.
    pub bulk: Gate,
    /// Who is loud.
    pub courtesy: Courtesy,
    /// New deliveries, from the fan-out to the dispatcher of this process.
    pub hand_off: HandOff,
    /// Long polls.
    pub waiters: Waiters,
    /// Workers that wait for jobs.
    pub waiting_workers: WaitingWorkers,
    /// What became of hand-outs.
    pub receipts: Receipts,
    /// Which workers were seen.
    pub sightings: Sightings,
    /// Who waits for events.
    pub event_bells: Bells,
    /// Idempotent requests under way.
    pub running_keys: Running,
    /// The bells.
    pub wakeups: Wakeups,
    /// The keys that are valid.
    pub keys: KeyRing,
    /// What runs in this process, and how to stop it.
    pub running_jobs: RunningJobs,
}

/// The tries that run in this process.
#[derive(Debug, Clone, Default)]
pub struct RunningJobs(Arc<Mutex<HashMap<(TenantId, JobId), CancellationToken>>>);

/// One of them; signs off when dropped.
#[derive(Debug)]
pub struct RunningJob {
    jobs: RunningJobs,
    key: (TenantId, JobId),
    /// Cancelled when someone wants the job stopped.
    pub cancelled: CancellationToken,
}

impl RunningJobs {
    /// Signs a try on.
    pub fn begin(&self, tenant: TenantId, job: JobId) -> RunningJob {
        let cancelled = CancellationToken::new();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((tenant, job), cancelled.clone());
        RunningJob { jobs: self.clone(), key: (tenant, job), cancelled }
    }
    /// Stops a try, if it runs here.
    pub fn cancel(&self, tenant: TenantId, job: JobId) {
        if let Some(token) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&(tenant, job)) {
            token.cancel();
        }
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        self.jobs.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

fn options_context(tenant: TenantId, job: JobId) -> SealContext {
    SealContext { tenant: tenant.uuid(), owner: job.uuid(), column: "jobs.callback_options" }
}

impl Shared {
    /// The options of a callback as they are stored; `None`: the defaults.
    /// # Errors
    /// [`SealError`].
    pub fn seal_options(
        &self,
        tenant: TenantId,
        job: JobId,
        callback: Option<&Callback>,
    ) -> Result<Option<Vec<u8>>, SealError> {
        let Some(callback) = callback.filter(|callback| callback.options != CallbackOptions::default())
        else {
            return Ok(None);
        };
        let text = serde_json::to_vec(&callback.options).unwrap_or_default();
        self.sealer.seal(&options_context(tenant, job), &text).map(Some)
    }

    /// The options of a callback from what is stored.
    /// # Errors
    /// [`SealError`].
    pub fn open_options(
        &self,
        tenant: TenantId,
        job: JobId,
        sealed: Option<&[u8]>,
    ) -> Result<CallbackOptions, SealError> {
        let Some(sealed) = sealed else { return Ok(CallbackOptions::default()) };
        let text = self.sealer.open(&options_context(tenant, job), sealed)?;
        serde_json::from_slice(text.expose()).map_err(|_| SealError::CannotOpen)
    }

    /// What a job is judged by when it comes.
    pub fn job_context(&self, tenant: TenantId, now: Timestamp) -> Context<'_> {
        Context {
            tenant,
            now,
            outbound: self.client.policy(),
            operator: self.config.roles.executor.then_some(&*self.config.operator),
        }
    }

    /// Leaves the gate for requests that bring much; a loud tenant keeps its place for a while.
    pub fn leave(&self, pass: Pass) {
        let pause =
            self.courtesy.pause_after(std::iter::once(Stream::Live(pass.tenant())), pass.since().elapsed());
        if let Some(pause) = pause {
            self.tasks.start(async move {
                tokio::time::sleep(pause.time).await;
                drop(pass);
            });
        }
    }

    /// The node's id.
    pub fn node_id(&self) -> Uuid {
        self.node.id
    }
}
