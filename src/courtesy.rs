//! How long the work of a loud tenant pauses, so that quiet ones that are active feel nothing of it.
//!
//! Turns alone are not enough: a tenant that brings a hundred thousand events keeps every core busy for a minute, and each
//! step of another's single event then waits for a core. So the loops that work in batches ask here after a batch that was
//! mostly one tenant's, or of what is replayed, and rest for as long as it took, times a factor. The factor follows the
//! strain that `engine::feel_strain` measures: a machine with cores to spare is not slowed down, and a tenant that is alone
//! never is.
//!
//! The decisions stand in [`Crowd`], which is handed the time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::ids::TenantId;

/// Activity is counted over this time, and the one before it.
const WINDOW: Duration = Duration::from_secs(1);
/// Fewer items than this are not loud.
const LOUD_FROM: u32 = 200;
/// A tenant is quiet beside one with so many times its items.
const TIMES: u32 = 4;
const FACTOR_MIN: f64 = 0.5;
const FACTOR_FIRST: f64 = 4.0;
const FACTOR_MAX: f64 = 40.0;
/// Whoever is loud goes on after this time in any case.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// While somebody quiet is active, a statement of a loud tenant's request takes so many of its items: a commit, or a
/// core, is free again a few milliseconds later.
const PIECE: usize = 50;
/// What a measurement of the strain does to the factor: it is held where one in fifty shows strain, so that one in a
/// hundred of the quiet ones' steps may.
const STRAINED: f64 = 1.25;
const CALM: f64 = 0.995;

/// Whose work it is. What a tenant replays gives way to everything live, its own included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// What a tenant brings.
    Live(TenantId),
    /// What it replays.
    Replays(TenantId),
}

/// Who is active, and how loud.
#[derive(Debug)]
struct Crowd {
    now: HashMap<Stream, u32>,
    before: HashMap<Stream, u32>,
    loudest: Option<Stream>,
    loudest_replays: Option<Stream>,
    began: Instant,
    factor: f64,
}

impl Crowd {
    fn new(now: Instant) -> Self {
        Self {
            now: HashMap::new(),
            before: HashMap::new(),
            loudest: None,
            loudest_replays: None,
            began: now,
            factor: FACTOR_FIRST,
        }
    }

    fn turn(&mut self, now: Instant) {
        let windows = now.duration_since(self.began).as_millis() / WINDOW.as_millis();
        if windows > 0 {
            self.before = std::mem::take(&mut self.now);
            self.began = now;
        }
        if windows > 1 {
            self.before.clear();
        }
    }

    fn note(&mut self, streams: impl Iterator<Item = Stream>, now: Instant) {
        self.turn(now);
        for stream in streams {
            *self.now.entry(stream).or_default() += 1;
            let loudest = self.loudest_like(stream);
            if loudest.is_none_or(|loudest| self.count(stream) > self.count(loudest)) {
                *self.loudest_like_mut(stream) = Some(stream);
            }
        }
    }

    fn loudest_like(&self, stream: Stream) -> Option<Stream> {
        match stream {
            Stream::Live(_) => self.loudest,
            Stream::Replays(_) => self.loudest_replays,
        }
    }

    fn loudest_like_mut(&mut self, stream: Stream) -> &mut Option<Stream> {
        match stream {
            Stream::Live(_) => &mut self.loudest,
            Stream::Replays(_) => &mut self.loudest_replays,
        }
    }

    fn count(&self, stream: Stream) -> u32 {
        let of = |window: &HashMap<Stream, u32>| window.get(&stream).copied().unwrap_or_default();
        of(&self.now) + of(&self.before)
    }

    /// Does this stream give way to the other one?
    fn gives_way(&self, (stream, count): (Stream, u32), other: Stream) -> bool {
        match (stream, other) {
            (Stream::Replays(_), Stream::Live(_)) => true,
            (Stream::Live(_), Stream::Replays(_)) => false,
            _ => self.count(other).saturating_mul(TIMES) <= count,
        }
    }

    /// Is it loud, and is somebody active to whom it gives way?
    fn is_loud(&self, stream: Stream) -> bool {
        let count = self.count(stream);
        let others = || self.now.keys().chain(self.before.keys());
        count >= LOUD_FROM && others().any(|other| self.gives_way((stream, count), *other))
    }

    /// One that is loud.
    fn loud(&self) -> Option<Stream> {
        [self.loudest, self.loudest_replays].into_iter().flatten().find(|one| self.is_loud(*one))
    }

    /// Whose batch it mostly was.
    fn mostly(streams: impl Iterator<Item = Stream>) -> Option<Stream> {
        let (mut counts, mut all) = (HashMap::<Stream, usize>::new(), 0);
        for stream in streams {
            *counts.entry(stream).or_default() += 1;
            all += 1;
        }
        counts.into_iter().find(|(_, count)| count * 2 > all).map(|(stream, _)| stream)
    }

    fn learn(&mut self, strained: bool) {
        let times = if strained { STRAINED } else { CALM };
        self.factor = (self.factor * times).clamp(FACTOR_MIN, FACTOR_MAX);
    }
}

/// Who is active, for all loops.
#[derive(Debug)]
pub struct Courtesy {
    crowd: Mutex<Crowd>,
    /// A quiet tenant has published something.
    pub came: Notify,
}

/// Whose batch it was, and how long its work pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// Who is loud.
    pub stream: Stream,
    /// For so long; less if somebody else brings something.
    pub time: Duration,
}

/// What is left of a request's items.
#[derive(Debug)]
pub struct Pieces<'a, T> {
    courtesy: &'a Courtesy,
    tenant: TenantId,
    rest: &'a [T],
    /// The last piece is being worked on since then.
    since: Option<Instant>,
}

impl<'a, T> Pieces<'a, T> {
    /// The next items to work on, in their order, after a pause for the last ones; `None`: that was all.
    pub async fn next(&mut self) -> Option<&'a [T]> {
        if self.rest.is_empty() {
            return None;
        }
        let took = self.since.map(|since| since.elapsed());
        let pause =
            took.and_then(|took| self.courtesy.pause_after(std::iter::once(Stream::Live(self.tenant)), took));
        if let Some(pause) = pause {
            tokio::time::sleep(pause.time).await;
        }
        self.since = Some(Instant::now());
        let count = self.courtesy.piece_max();
        let (piece, behind) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = behind;
        Some(piece)
    }
}

impl Default for Courtesy {
    fn default() -> Self {
        Self { crowd: Mutex::new(Crowd::new(Instant::now())), came: Notify::new() }
    }
}

impl Courtesy {
    fn lock(&self) -> MutexGuard<'_, Crowd> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes items, one each.
    pub fn note(&self, streams: impl Iterator<Item = Stream>) {
        self.lock().note(streams, Instant::now());
    }

    /// Notes what was published, and calls whoever pauses if a quiet tenant is among them.
    pub fn note_published(&self, tenants: impl Iterator<Item = TenantId> + Clone) {
        self.note(tenants.clone().map(Stream::Live));
        self.call(tenants);
    }

    /// Calls whoever pauses for the loudest tenant, if another one is among these.
    pub fn call(&self, mut tenants: impl Iterator<Item = TenantId>) {
        // Whether it is loud at the moment says nothing: a pause makes it quieter.
        let loudest = self.lock().loudest;
        if loudest.is_some_and(|loudest| tenants.any(|tenant| loudest != Stream::Live(tenant))) {
            self.came.notify_one();
        }
    }

    /// The pause after a batch of these items that took so long; `None`: it goes on at once.
    pub fn pause_after(&self, streams: impl Iterator<Item = Stream>, took: Duration) -> Option<Pause> {
        let stream = Crowd::mostly(streams)?;
        let mut crowd = self.lock();
        crowd.turn(Instant::now());
        crowd.is_loud(stream).then(|| Pause { stream, time: took.mul_f64(crowd.factor).min(PAUSE_MAX) })
    }

    /// The items of a tenant's request: all at once, or in pieces with pauses while it is loud.
    pub fn pieces<'a, T>(&'a self, tenant: TenantId, items: &'a [T]) -> Pieces<'a, T> {
        self.note(std::iter::repeat_n(Stream::Live(tenant), items.len()));
        Pieces { courtesy: self, tenant, rest: items, since: None }
    }

    /// So many items are worked on together.
    pub fn piece_max(&self) -> usize {
        if self.is_asked_for() { PIECE } else { usize::MAX }
    }

    /// Was anybody active lately?
    pub fn is_active(&self) -> bool {
        let mut crowd = self.lock();
        crowd.turn(Instant::now());
        !crowd.now.is_empty() || !crowd.before.is_empty()
    }

    /// Is somebody loud beside somebody quiet?
    pub fn is_asked_for(&self) -> bool {
        let mut crowd = self.lock();
        crowd.turn(Instant::now());
        crowd.loud().is_some()
    }

    /// Pauses grow while the machine is strained, and shrink while it is not. To be called every 10 ms. Answers how many
    /// times as long as its work a pause is now.
    pub fn learn(&self, strained: bool) -> f64 {
        let mut crowd = self.lock();
        crowd.learn(strained);
        crowd.factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(number: u128) -> TenantId {
        TenantId::from_uuid(uuid::Uuid::from_u128(number))
    }

    fn tenants(number: u128, count: usize) -> impl Iterator<Item = Stream> + Clone {
        std::iter::repeat_n(Stream::Live(tenant(number)), count)
    }

    fn replays(number: u128, count: usize) -> impl Iterator<Item = Stream> {
        std::iter::repeat_n(Stream::Replays(tenant(number)), count)
    }

    #[test]
    fn a_replay_gives_way_to_everything_live_and_nobody_gives_way_to_it() {
        let courtesy = Courtesy::default();
        let took = Duration::from_millis(2);
        courtesy.note(replays(1, 500));
        assert_eq!(courtesy.pause_after(replays(1, 10), took), None, "nothing live is there");
        courtesy.note(tenants(1, 1000));
        assert!(courtesy.pause_after(replays(1, 10), took).is_some(), "its own tenant's, and more of it");
        assert!(courtesy.is_asked_for());
        assert_eq!(courtesy.pause_after(tenants(1, 10), took), None);
    }

    #[test]
    fn only_a_loud_tenant_beside_a_quiet_one_pauses() {
        let courtesy = Courtesy::default();
        let took = Duration::from_millis(2);
        courtesy.note(tenants(1, 1000));
        assert_eq!(courtesy.pause_after(tenants(1, 10), took), None, "it is alone");
        courtesy.note(tenants(2, 900));
        assert_eq!(courtesy.pause_after(tenants(1, 10), took), None, "the other is as loud");
        courtesy.note(tenants(3, 5));
        let pause = courtesy.pause_after(tenants(1, 10), took).expect("a quiet one is there");
        assert_eq!(pause.time, took.mul_f64(FACTOR_FIRST));
        assert_eq!(courtesy.pause_after(tenants(3, 1), took), None, "the quiet one does not");
        assert_eq!(courtesy.pause_after(tenants(1, 5).chain(tenants(3, 5)), took), None, "a mixed batch");
    }

    #[tokio::test]
    async fn a_loud_tenants_request_is_worked_on_in_pieces() {
        let (courtesy, one) = (Courtesy::default(), tenant(1));
        let items = [(); 220];
        let sizes = async || {
            let (mut sizes, mut pieces) = (Vec::new(), courtesy.pieces(one, &items));
            while let Some(piece) = pieces.next().await {
                sizes.push(piece.len());
            }
            sizes
        };
        assert_eq!(sizes().await, [220], "it is alone");
        courtesy.note(tenants(3, 5));
        assert_eq!(sizes().await, [50, 50, 50, 50, 20]);
    }

    #[test]
    fn strain_makes_pauses_longer_within_bounds() {
        let mut crowd = Crowd::new(Instant::now());
        (0..100).for_each(|_| crowd.learn(true));
        assert!((crowd.factor - FACTOR_MAX).abs() < 1e-9);
        (0..2000).for_each(|_| crowd.learn(false));
        assert!((crowd.factor - FACTOR_MIN).abs() < 1e-9);
    }

    #[test]
    fn what_was_is_forgotten_after_two_windows() {
        let start = Instant::now();
        let mut crowd = Crowd::new(start);
        crowd.note(tenants(1, 1000).chain(tenants(2, 1)), start);
        crowd.turn(start + WINDOW);
        assert!(crowd.loud().is_some());
        crowd.turn(start + WINDOW * 3);
        assert!(crowd.loud().is_none());
    }
}
