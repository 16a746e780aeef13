//! Who waits for work: the long polls of workers, in the order in which they came.
//!
//! Called by `http::leases` (enters and waits) and `engine::lend_jobs` (claims for groups that want the same, and answers).
//!
//! Invariant: each place is answered once, or leaves by being dropped; what is sent to one that has left is reported as
//! undelivered by the parcel itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::parcel::Parcel;
use super::wish::Wish;
use crate::db::StoreError;
use crate::ids::TenantId;

/// What a waiting worker gets: jobs, or nothing because its time is over (`None`).
pub type Answer = Result<Option<Parcel>, StoreError>;

/// What is wanted: of which tenant, which kinds, which queues.
type Want<'a> = (TenantId, &'a [String], Option<&'a [String]>);

#[derive(Debug)]
struct Place {
    wish: Arc<Wish>,
    until: Instant,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    /// By number, so in the order in which they came.
    by_number: BTreeMap<u64, Place>,
}

/// The list. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct WaitingWorkers(Arc<Mutex<Places>>);

/// A place in the list; leaves it when dropped.
#[derive(Debug)]
pub struct Waiting {
    list: WaitingWorkers,
    number: u64,
    answer: oneshot::Receiver<Answer>,
}

/// One who waits, as the hand-out sees it.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its place.
    pub number: u64,
    /// What it wants.
    pub wish: Arc<Wish>,
}

/// Workers that want the same, in the order in which they came.
#[derive(Debug, Clone)]
pub struct Group {
    /// All of them.
    pub members: Vec<Member>,
}

impl Group {
    /// Of which tenant, kinds and queues: that of any member.
    pub fn wish(&self) -> &Wish {
        &self.members[0].wish
    }

    /// The members' free places, at most `max`: by turns, so that workers who wait together share what there is.
    pub fn slots(&self, max: usize) -> Vec<&Member> {
        let mut slots = Vec::new();
        let most = self.members.iter().map(|member| member.wish.max).max().unwrap_or(0);
        for turn in 0..most {
            for member in self.members.iter().filter(|member| turn < member.wish.max) {
                if slots.len() == max {
                    return slots;
                }
                slots.push(member);
            }
        }
        slots
    }
}

impl WaitingWorkers {
    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters the list, to be answered by `until` at the latest.
    pub fn enter(&self, wish: Wish, until: Instant) -> Waiting {
        let (sender, answer) = oneshot::channel();
        let mut places = self.lock();
        let number = places.next;
        places.next += 1;
        places.by_number.insert(number, Place { wish: Arc::new(wish), until, answer: sender });
        Waiting { list: self.clone(), number, answer }
    }

    /// All who wait, those together who want the same; who came first is in the first group.
    pub fn groups(&self) -> Vec<Group> {
        let places = self.lock();
        let mut groups: Vec<Group> = Vec::new();
        let mut known: HashMap<Want<'_>, usize> = HashMap::new();
        for (number, place) in &places.by_number {
            let wish = &place.wish;
            let key = (wish.tenant, wish.kinds.as_slice(), wish.queues.as_deref());
            let at = *known.entry(key).or_insert_with(|| {
                groups.push(Group { members: Vec::new() });
                groups.len() - 1
            });
            groups[at].members.push(Member { number: *number, wish: wish.clone() });
        }
        groups
    }

    /// Answers one, if it still waits. What cannot be sent is dropped, and so reported as undelivered.
    pub fn answer(&self, number: u64, answer: Answer) {
        let place = self.lock().by_number.remove(&number);
        if let Some(place) = place {
            drop(place.answer.send(answer));
        }
    }

    /// Answers with nothing those of the group whose time is over.
    pub fn dismiss(&self, group: &Group, now: Instant) {
        for member in &group.members {
            let over = self.lock().by_number.get(&member.number).is_some_and(|place| place.until <= now);
            if over {
                self.answer(member.number, Ok(None));
            }
        }
    }

    /// When the time of the first one is over.
    pub fn next_end(&self) -> Option<Instant> {
        self.lock().by_number.values().map(|place| place.until).min()
    }
}

impl Waiting {
    /// The answer; `None`: whoever answers is gone.
    pub async fn answer(&mut self) -> Option<Answer> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.list.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    fn wish(kind: &str, max: usize) -> Wish {
        Wish {
            tenant: TenantId::from_uuid(uuid::Uuid::from_u128(1)),
            worker: "w".to_owned(),
            kinds: vec![kind.to_owned()],
            queues: None,
            max,
            lease: Duration::from_secs(30),
            wait: Duration::ZERO,
        }
    }

    #[tokio::test]
    async fn those_who_want_the_same_stand_together_and_share_by_turns() {
        let list = WaitingWorkers::default();
        let until = Instant::now();
        let places: Vec<_> =
            [("a", 1), ("b", 9), ("a", 3)].map(|(kind, max)| list.enter(wish(kind, max), until)).into();
        let groups = list.groups();
        assert_eq!(groups.len(), 2);
        let numbers = |max| groups[0].slots(max).iter().map(|member| member.number).collect::<Vec<_>>();
        assert_eq!(numbers(10), [0, 2, 2, 2]);
        assert_eq!(numbers(2), [0, 2]);
        drop(places);
        assert!(list.groups().is_empty(), "who leaves waits no more");
    }

    #[tokio::test]
    async fn only_those_whose_time_is_over_are_dismissed() {
        let list = WaitingWorkers::default();
        let now = Instant::now();
        let mut over = list.enter(wish("a", 1), now);
        let _stays = list.enter(wish("a", 1), now + Duration::from_mins(1));
        list.dismiss(&list.groups()[0], now);
        assert!(matches!(over.answer().await, Some(Ok(None))));
        assert_eq!(list.groups()[0].members.len(), 1);
    }
}
