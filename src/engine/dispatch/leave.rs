//! The dispatcher's end: lanes are given to the other nodes at once, those with something in flight when it has landed.
//!
//! Invariant: a lane is given away only when nothing of it is on the wire, or everything was handed back.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{Dispatcher, News};
use crate::nodes;

/// Landings that come close together free their lanes together.
const TOGETHER: Duration = Duration::from_millis(20);

impl Dispatcher {
    /// Waits for all that flies, writes what it teaches, and gives each lane away as soon as it is idle.
    pub(super) async fn leave(mut self, heard: &mut mpsc::UnboundedReceiver<News>) {
        let shared = self.shared.clone();
        shared.hand_off.set_lanes(std::iter::empty());
        // The others may take more from now on, and a look-up that is under way takes no more.
        if let Err(error) = nodes::store::retire(&shared.db, &shared.node).await {
            tracing::warn!(%error, "cannot tell that this node takes no lane any more");
        }
        self.leaving = self.lanes.clone();
        self.ground(|_| true);
        loop {
            while let Ok(news) = heard.try_recv() {
                self.hear_last(news);
            }
            self.give_away(self.leavable()).await;
            tokio::select! {
                biased;
                Some(news) = heard.recv() => self.hear_last(news),
                ended = self.tasks.join_next() => if ended.is_none() { break },
            }
            tokio::time::sleep(TOGETHER).await;
        }
        while let Ok(news) = heard.try_recv() {
            self.hear_last(news);
        }
        if let Some(learned) = self.health.take() {
            learned.write(shared.clone()).await;
        }
        // What was loaded and did not fly is not to be taken for lost in the air.
        if let Err(error) = nodes::store::land_all(&shared.db, &shared.node).await {
            tracing::warn!(%error, "cannot say that nothing is in the air any more");
        }
        // Also those that a look-up took while the news of it was not heard any more.
        self.give_away((0..nodes::LANES).collect()).await;
    }

    fn hear_last(&mut self, news: News) {
        match news {
            News::Landed { due, endpoint, landed, .. } => {
                if let Some(endpoint) = endpoint {
                    self.health.note(&due, endpoint, &landed, None);
                }
                self.left_lane(due.lane);
            }
            // They stay where they are: nothing sets off any more.
            News::Loaded { loaded, missing, .. } => {
                loaded
                    .iter()
                    .map(|loaded| &loaded.due)
                    .chain(&missing)
                    .for_each(|due| self.left_lane(due.lane));
            }
            News::Answered { .. } | News::Looked(_) => {}
        }
    }

    async fn give_away(&mut self, lanes: Vec<i16>) {
        if lanes.is_empty() {
            return;
        }
        match nodes::store::release_lanes(&self.shared.db, &self.shared.node, &lanes).await {
            Ok(()) => {
                self.leaving.retain(|lane| !lanes.contains(lane));
                self.shared.wakeups.lanes.notify_elsewhere();
            }
            Err(error) => tracing::warn!(%error, "cannot give lanes back; the other nodes will take them"),
        }
    }
}
