//! A batch on its way: loaded by one database call, which also notes what is on the wire; then each delivery flies alone.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::News;
use super::transmit::{self, Landed};
use crate::deliveries::Due;
use crate::deliveries::scheduling::{Landing, LandingAnswer};
use crate::deliveries::store::{self, Receiver};
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

impl Flight {
    /// Loads the batch and sends each of it. `landed`: former flights that need not be remembered any more.
    pub(super) async fn fly(self, batch: Vec<Due>, landed: Vec<Uuid>) {
        let Self { id: flight, shared, stop, news } = self;
        // The dispatcher is gone only when the process is ending; then nobody needs the news.
        let tell =
            |due: Due, landed: Landed| drop(news.send(News::Landed { due, flight, endpoint: None, landed }));
        let not_called =
            |again_in| Landed::not_called(Landing { answer: LandingAnswer::NotCalled, again_in });
        let loaded = store::take_off(&shared.db, shared.node_id(), flight, &batch, &landed).await;
        drop(news.send(News::Loaded));
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::warn!(%error, "cannot load deliveries; they are tried again");
                tokio::time::sleep(GROUNDED_FOR).await;
                for due in batch {
                    tell(due, not_called(Some(Duration::ZERO)));
                }
                return;
            }
        };
        // What is not there any more was ended elsewhere, or its lane is another node's.
        let there: HashSet<DeliveryId> = loaded.iter().map(|loaded| loaded.due.id).collect();
        for due in batch.into_iter().filter(|due| !there.contains(&due.id)) {
            tell(due, not_called(None));
        }
        let mut flying = JoinSet::new();
        for one in loaded {
            let (shared, stop, news) = (shared.clone(), stop.clone(), news.clone());
            flying.spawn(async move {
                let due = one.due;
                let endpoint = match one.receiver {
                    Receiver::Endpoint(endpoint) => Some(endpoint),
                    Receiver::Callback { .. } => None,
                };
                let landed = transmit::transmit(&shared, &stop, one).await;
                drop(news.send(News::Landed { due, flight, endpoint, landed }));
            });
        }
        while flying.join_next().await.is_some() {}
    }
}
