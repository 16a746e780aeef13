//! [pure] The walk over the order keys of a receiver that were left in the database: round after round in the order of
//! the keys, each page behind the last one, so that every key is reached however the others do. Called by `keys` and `lines`.

use super::lines::Line;

/// Where it stands.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Lines may be in the database that memory knows nothing of.
    left: bool,
    asked: bool,
    /// This round began at the beginning, and nothing was left in the database since.
    clean: bool,
    /// The last line that was looked at; `None`: a round begins.
    cursor: Option<Line>,
}

impl Walk {
    /// Lines may be in the database that memory knows nothing of.
    pub(super) fn has_left(&self) -> bool {
        self.left
    }

    /// A line was left in the database.
    pub(super) fn leave(&mut self) {
        self.left = true;
        self.clean = false;
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.left && !self.asked
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.left && !self.asked
    }

    /// A page is asked for.
    pub(super) fn ask(&mut self) {
        self.asked = true;
        self.clean = self.clean || self.cursor.is_none();
    }

    /// Behind which line?
    pub(super) fn from(&self) -> Option<Line> {
        self.cursor
    }

    /// Is a page behind this line what was asked for?
    pub(super) fn hears(&mut self, from: Option<Line>) -> bool {
        let hears = self.asked && self.cursor == from;
        self.asked = self.asked && !hears;
        hears
    }

    /// All up to `last` was looked at. `more`: there is more behind it.
    pub(super) fn goes(&mut self, last: Option<Line>, more: bool) {
        if more {
            self.cursor = last;
            return;
        }
        self.cursor = None;
        self.left = self.left && !self.clean;
        self.clean = false;
    }

    /// The question was withdrawn, and is put again.
    pub(super) fn ask_again(&mut self) {
        self.asked = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliveries::scheduling::Kind;

    #[test]
    fn a_round_in_which_nothing_was_left_is_the_last_one() {
        let mut walk = Walk::default();
        let line = |key| Some((key, Kind::Live));
        walk.leave();
        walk.ask();
        assert_eq!(walk.from(), None);
        assert!(walk.hears(None));
        walk.goes(line(7), true);
        walk.ask();
        assert_eq!(walk.from(), line(7), "it goes on where it stood");
        assert!(!walk.hears(None), "the answer to another question");
        walk.leave();
        assert!(walk.hears(line(7)));
        walk.goes(line(9), false);
        assert!(walk.has_left(), "perhaps before the place where it stood");
        walk.ask();
        assert_eq!(walk.from(), None);
        assert!(walk.hears(None));
        walk.goes(line(9), false);
        assert!(walk.is_idle());
    }
}
