//! [pure] Receivers that failed get their next calls a few at a time.
//!
//! A thousand that hang were called together and time out together; called again together, each time anew, they would
//! make a peak of work that everybody feels. Called by the schedule only.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Moment, TargetRef};

/// So many are let go together …
const TOGETHER: usize = 16;
/// … and the next ones after this time: 320 a second.
const EVERY: Duration = Duration::from_millis(50);

/// Who waits, first come, first served.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    waiting: VecDeque<TargetRef>,
    /// So many were let go …
    gone: usize,
    /// … until then.
    next: Moment,
}

impl Suspects {
    /// May this one go now? If not, it waits for its turn.
    pub(super) fn goes(&mut self, at: TargetRef, now: Moment) -> bool {
        if self.waiting.is_empty() && now >= self.next {
            (self.gone, self.next) = (0, now + EVERY);
        }
        let goes = self.waiting.is_empty() && self.gone < TOGETHER;
        if goes {
            self.gone += 1;
        } else {
            self.waiting.push_back(at);
        }
        goes
    }

    /// When the next ones go.
    pub(super) fn next_at(&self) -> Option<Moment> {
        (!self.waiting.is_empty()).then_some(self.next)
    }

    /// Those that go now.
    pub(super) fn due(&mut self, now: Moment) -> Vec<TargetRef> {
        if self.waiting.is_empty() || now < self.next {
            return Vec::new();
        }
        (self.gone, self.next) = (self.waiting.len().min(TOGETHER), now + EVERY);
        self.waiting.drain(..self.gone).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TenantId;

    #[test]
    fn they_go_a_few_at_a_time() {
        let at = (TenantId::fresh(), uuid::Uuid::nil());
        let mut suspects = Suspects::default();
        let mut went = vec![(0..40).filter(|_| suspects.goes(at, Moment::ZERO)).count()];
        while let Some(next) = suspects.next_at() {
            went.push(suspects.due(next).len());
            assert!(suspects.due(next).is_empty(), "not twice at a time");
        }
        assert_eq!(went, [16, 16, 8]);
        assert!(suspects.goes(at, Moment::from_secs(1)), "nobody waits");
    }
}
