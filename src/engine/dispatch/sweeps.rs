//! [pure] Where the next page of a sweep through what is due begins.
//!
//! Called by `lookups`, which asks the database.
//!
//! A sweep goes on from where the last one ended; now and then one looks back, for commits that come late; and when it is not
//! known any more what was seen (lanes are new, a look-up failed), one begins at the beginning.
//!
//! Invariant: a look back begins at a place before which nothing is due that was not found. A page that was asked for
//! before all was in doubt moves nothing.

use std::time::Duration;

use uuid::Uuid;

use crate::clock::Timestamp;
use crate::deliveries::DueCursor;
use crate::deliveries::due_store::DuePage;
use crate::deliveries::scheduling::Moment;
use crate::ids::DeliveryId;

/// Commits may become visible so much later than the time that stands in their rows: once in [`LOOK_BACK_EVERY`] a sweep
/// looks back so far, and those in between go on where the last one ended.
pub(super) const LATE: Duration = Duration::from_secs(2);
const LOOK_BACK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Sweeps {
    /// Where the next page begins.
    cursor: Option<DueCursor>,
    /// Before it nothing becomes visible any more; there a look back begins.
    settled: Option<DueCursor>,
    ended: bool,
    looks_back: bool,
    look_back_at: Moment,
    /// All came into doubt while a page was on its way.
    void: bool,
}

impl Default for Sweeps {
    fn default() -> Self {
        Self {
            cursor: None,
            settled: None,
            ended: true,
            looks_back: false,
            look_back_at: Moment::ZERO,
            void: false,
        }
    }
}

impl Sweeps {
    /// The next sweep begins at the beginning, whatever is under way.
    pub(super) fn rewind(&mut self) {
        *self = Self { void: true, ..Self::default() };
    }

    /// Where the page begins that is asked for now; `None`: at the beginning.
    pub(super) fn next(&mut self, now: Moment) -> Option<DueCursor> {
        self.void = false;
        if self.ended {
            self.looks_back = now >= self.look_back_at;
            if self.looks_back {
                self.look_back_at = now + LOOK_BACK_EVERY;
                self.cursor = self.settled;
            }
        }
        self.cursor
    }

    /// A page that was asked for at this time of the database came. `true`: the next one is due at once.
    pub(super) fn page(&mut self, page: &DuePage, asked_at: Timestamp) -> bool {
        if self.void {
            return true;
        }
        self.cursor = page.last.or(self.cursor);
        self.ended = !page.more;
        // What came late is behind the place where the other sweeps begin.
        if self.looks_back {
            let all = Some((asked_at - LATE, DeliveryId::from_uuid(Uuid::nil())));
            self.settled = if self.ended { all } else { page.settled.or(self.settled) };
        }
        page.more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(second: i64) -> DueCursor {
        (Timestamp::from_timestamp(second, 0).expect("a time"), DeliveryId::from_uuid(Uuid::nil()))
    }

    fn page(last: i64, settled: Option<i64>, more: bool) -> DuePage {
        DuePage { due: Vec::new(), more, last: Some(place(last)), settled: settled.map(place) }
    }

    const SECOND: Moment = Moment::from_secs(1);

    #[test]
    fn it_goes_on_where_it_ended_and_looks_back_once_a_second() {
        let mut sweeps = Sweeps::default();
        assert_eq!(sweeps.next(SECOND), None);
        assert!(sweeps.page(&page(50, Some(49), true), place(100).0));
        assert_eq!(sweeps.next(SECOND), Some(place(50)));
        assert!(!sweeps.page(&page(99, Some(97), false), place(100).0));
        assert_eq!(sweeps.next(SECOND), Some(place(99)), "in between it goes on");
        assert!(!sweeps.page(&DuePage::default(), place(100).0));
        assert_eq!(sweeps.next(SECOND * 2), Some(place(98)), "what was asked for, but for the late ones");
    }

    #[test]
    fn a_page_that_was_asked_for_before_all_came_into_doubt_moves_nothing() {
        let mut sweeps = Sweeps::default();
        sweeps.next(SECOND);
        sweeps.rewind();
        assert!(sweeps.page(&page(99, Some(97), false), place(100).0), "the next page is due at once");
        assert_eq!(sweeps.next(SECOND), None);
        assert!(!sweeps.page(&page(99, Some(97), false), place(100).0));
        assert_eq!(sweeps.next(SECOND * 2), Some(place(98)));
    }
}
