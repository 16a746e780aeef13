//! [pure] The receivers of one tenant that may be called now, in turn. Called by the schedule only.

use std::collections::VecDeque;

use uuid::Uuid;

/// The receivers of a tenant that may be called now.
#[derive(Debug, Default)]
pub(super) struct Ring {
    proven: VecDeque<Uuid>,
    unproven: VecDeque<Uuid>,
    turns: u8,
}

impl Ring {
    pub(super) fn is_empty(&self) -> bool {
        self.proven.is_empty() && self.unproven.is_empty()
    }

    pub(super) fn push(&mut self, target: Uuid, proven: bool) {
        if proven { &mut self.proven } else { &mut self.unproven }.push_back(target);
    }

    /// Those that answered well have three turns of four: a thousand that hang are no queue to stand in.
    pub(super) fn pop(&mut self) -> Option<Uuid> {
        self.turns = self.turns.wrapping_add(1);
        let (first, then) = if self.turns.is_multiple_of(4) {
            (&mut self.unproven, &mut self.proven)
        } else {
            (&mut self.proven, &mut self.unproven)
        };
        first.pop_front().or_else(|| then.pop_front())
    }
}
