//! [pure] What the schedule would like to have from the database, a bounded piece of it at a time. Called by the schedule.

use super::lines::Line;
use super::{BacklogRef, KeyRef};
use crate::deliveries::DueCursor;

/// Receivers that are refilled together.
const REFILLS_MAX: usize = 256;
/// Order keys whose first deliveries are looked up together.
const KEYS_MAX: usize = 2000;
/// Receivers whose order keys are walked over together.
const WALKS_MAX: usize = 4;

/// What the schedule would like to have from the database.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// Receivers that have room again and more in the database.
    pub refills: Vec<Refill>,
    /// Order keys whose first deliveries have to be looked up, and how many of each.
    pub keys: Vec<(KeyRef, usize)>,
    /// Receivers that have room for more order keys, and behind which one to look for them.
    pub walks: Vec<(BacklogRef, Option<Line>)>,
}

/// More of what waits for a receiver, of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refill {
    /// Whose.
    pub of: BacklogRef,
    /// Behind which one.
    pub from: Option<DueCursor>,
    /// So many rows at most.
    pub limit: usize,
}

/// A page of a receiver's order keys, of both kinds, in the order of the keys.
#[derive(Debug, Clone, Default)]
pub struct LinesPage {
    /// Is the first delivery due?
    pub lines: Vec<(Line, bool)>,
    /// There may be more.
    pub more: bool,
}

impl Wants {
    /// As much as one look-up should ask for, those that have waited longest first.
    pub(super) fn piece(&mut self) -> Self {
        let first = self.keys.len().min(KEYS_MAX);
        let keys = self.keys.drain(..first).collect();
        let first = self.walks.len().min(WALKS_MAX);
        let walks = self.walks.drain(..first).collect();
        let first = self.refills.len().min(REFILLS_MAX);
        let refills = self.refills.drain(..first).collect();
        Self { refills, keys, walks }
    }
}
