//! [pure] What waits for one receiver without an order: the first of it in memory, the rest in the database.
//!
//! A receiver has two: what is live, and what is replayed. Each is filled and refilled by itself, so that a long replay
//! leaves no live delivery in the database. Called by `target` only.

use std::collections::VecDeque;

use crate::deliveries::{Due, DueCursor};

/// Live or replayed?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// It goes first.
    Live,
    /// It gives way.
    Replays,
}

impl Kind {
    /// What is live goes first.
    pub const BOTH: [Self; 2] = [Self::Live, Self::Replays];

    /// Of which kind a delivery is.
    pub fn of(due: &Due) -> Self {
        if due.replay { Self::Replays } else { Self::Live }
    }
}

/// So many of a receiver's deliveries are held however full the memory is, and however little it takes: what others have
/// waiting keeps nobody from being served.
pub(super) const FLOOR: usize = 16;

/// First come, first served.
#[derive(Debug)]
pub(super) struct Backlog {
    waiting: VecDeque<Due>,
    held_max: usize,
    /// There is more in the database.
    more: bool,
    refilling: bool,
    /// All that was due before this is in memory, in flight or over: a refill need not walk over what is gone.
    cursor: Option<DueCursor>,
    /// That came into doubt while a refill was on its way.
    rewound: bool,
}

impl Backlog {
    pub(super) fn new(held_max: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            held_max,
            more: false,
            refilling: false,
            cursor: None,
            rewound: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Nothing here, and nothing known of in the database.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.more && !self.refilling
    }

    /// While some were left in the database, those that come later are left there too, but for a refill, or they would
    /// overtake them again and again.
    pub(super) fn offer(&mut self, due: Due, room: usize, refill: bool) -> bool {
        let behind = !refill && (self.more || self.refilling);
        if behind || self.waiting.len() >= self.held_max.min(room) {
            self.more = true;
            return false;
        }
        self.waiting.push_back(due);
        true
    }

    pub(super) fn pop(&mut self) -> Option<Due> {
        self.waiting.pop_front()
    }

    /// Some may be in the database that nobody offered.
    pub(super) fn look_again(&mut self) {
        self.more = true;
        self.rewind();
    }

    /// Refills begin at the beginning again.
    pub(super) fn rewind(&mut self) {
        self.cursor = None;
        self.rewound = self.refilling;
    }

    /// The last one that was popped did not go.
    pub(super) fn put_back(&mut self, due: Due) {
        self.waiting.push_front(due);
    }

    /// Where a refill goes on from.
    pub(super) fn cursor(&self) -> Option<DueCursor> {
        self.cursor
    }

    /// Asked for once, when a quarter of the room is left.
    pub(super) fn wants_refill(&mut self, room: usize) -> bool {
        let wants = self.more && !self.refilling && self.waiting.len() < self.held_max.min(room) / 4;
        if wants {
            self.refilling = true;
            self.more = false;
        }
        wants
    }

    /// A refill came; `more`: there is still more in the database, behind `cursor`.
    pub(super) fn refilled(&mut self, more: bool, cursor: Option<DueCursor>) {
        self.refilling = false;
        self.more = self.more || more;
        self.cursor = cursor.filter(|_| self.more && !self.rewound);
        self.rewound = false;
    }

    /// The question was withdrawn, and is put again.
    pub(super) fn ask_again(&mut self) {
        if std::mem::take(&mut self.refilling) {
            self.more = true;
        }
    }

    /// Forgets everything; it is in the database.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Due> {
        self.more = false;
        self.refilling = false;
        self.rewind();
        std::mem::take(&mut self.waiting).into_iter()
    }
}
