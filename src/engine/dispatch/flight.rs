//! A batch on its way: loaded by one database call, which also notes what is about to be on the wire; then each delivery
//! flies alone, when the dispatcher says so.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::News;
use super::transmit;
use crate::deliveries::Due;
use crate::deliveries::store::{self, Loaded, Receiver};
use crate::ids::DeliveryId;
use crate::shared::Shared;
use crate::supervisor::Stop;

const GROUNDED_FOR: Duration = Duration::from_millis(500);

/// What a flight needs.
pub(super) struct Flight {
    pub(super) id: Uuid,
    pub(super) shared: Arc<Shared>,
    pub(super) stop: Stop,
    pub(super) news: mpsc::UnboundedSender<News>,
}

/// A delivery that is loaded and may go.
pub(super) struct Boarded {
    pub(super) flight: Uuid,
    pub(super) loaded: Loaded,
    pub(super) since: Instant,
}

impl Flight {
    /// Loads a batch. `landed`: former flights that need not be remembered any more.
    pub(super) async fn load(self, batch: Vec<Due>, landed: Vec<Uuid>) {
        let began = Instant::now();
        let loaded = store::take_off(&self.shared.db, self.shared.node_id(), self.id, &batch, &landed).await;
        let took = began.elapsed();
        let (loaded, again_in) = match loaded {
            Ok(loaded) => (loaded, None),
            Err(error) => {
                tracing::warn!(%error, "cannot load deliveries; they are tried again");
                tokio::time::sleep(GROUNDED_FOR).await;
                (Vec::new(), Some(Duration::ZERO))
            }
        };
        self.warm_secrets(&loaded).await;
        // What is not there any more was ended elsewhere, or its lane is another node's.
        let there: HashSet<DeliveryId> = loaded.iter().map(|loaded| loaded.due.id).collect();
        let missing = batch.into_iter().filter(|due| !there.contains(&due.id)).collect();
        self.tell(News::Loaded { flight: self.id, took, loaded, missing, again_in });
    }

    /// One question for all of them, where each would ask for its own.
    async fn warm_secrets(&self, loaded: &[Loaded]) {
        let shared = &self.shared;
        let endpoints = loaded.iter().filter_map(|loaded| match loaded.receiver {
            Receiver::Endpoint(endpoint) => shared.endpoints.get(loaded.due.tenant, endpoint),
            Receiver::Callback { .. } => None,
        });
        let owners = endpoints.map(|endpoint| endpoint.secrets());
        shared.secrets.warm(&shared.db, &shared.sealer, owners).await;
    }

    /// Sends one of it, and writes down what came of it.
    pub(super) async fn fly(self, loaded: Loaded) {
        let due = loaded.due;
        let endpoint = match loaded.receiver {
            Receiver::Endpoint(endpoint) => Some(endpoint),
            Receiver::Callback { .. } => None,
        };
        let tried = transmit::send(&self.shared, &self.stop, &loaded).await;
        self.tell(News::Answered { due, answer: tried.answer() });
        let landed = transmit::record(&self.shared, due, tried).await;
        self.tell(News::Landed { due, flight: self.id, endpoint, landed });
    }

    fn tell(&self, news: News) {
        // The dispatcher is gone only when the process is ending; then nobody needs the news.
        drop(self.news.send(news));
    }
}
