//! What has an order, against a model of the database: any sequence of arrivals, landings, look-ups and the passing of time.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;

use super::super::*;
use super::{NOW, due, free, land};

/// A delivery that waits, when it is due, and whether a sweep has passed it by since.
#[derive(Debug, Clone, Copy)]
struct Row {
    due: Due,
    when: Moment,
    swept: bool,
}

/// The first deliveries of a key; these are all.
type KeyRows = (Vec<(Due, Moment)>, bool);

/// What a look-up read, and what landed since.
#[derive(Default)]
struct Look {
    keys: Vec<(KeyRef, KeyRows)>,
    walks: Vec<(BacklogRef, Option<Line>, LinesPage)>,
    landed: HashSet<DeliveryId>,
}

/// Waiting deliveries as the database holds them, by receiver and line, in the order of their positions.
#[derive(Default)]
struct Model {
    rows: BTreeMap<KeyRef, BTreeMap<i64, Row>>,
    ended: HashMap<KeyRef, Vec<i64>>,
    published: usize,
    look: Option<Look>,
}

const PAGE: usize = 3;

impl Model {
    fn publish(&mut self, (target, key): (u128, i64), position: i64, replay: bool) -> Due {
        let due = Due { order: Some(key), position, replay, ..due(1, target) };
        let line = ((due.tenant, due.target), (key, Kind::of(&due)));
        let row = Row { due, when: Moment::ZERO, swept: false };
        self.rows.entry(line).or_default().insert(position, row);
        self.published += 1;
        due
    }

    /// Reads what is wanted.
    fn look(&mut self, schedule: &mut Schedule, now: Moment) {
        if self.look.is_some() {
            return;
        }
        let wants = schedule.wants();
        let mut look = Look::default();
        for (of, heads) in wants.keys {
            let all = self.rows.get(&of).into_iter().flat_map(BTreeMap::values);
            let rows: Vec<_> = all.map(|row| (row.due, row.when)).take(heads).collect();
            let complete = rows.len() < heads;
            look.keys.push((of, (rows, complete)));
        }
        for (of, from) in wants.walks {
            let behind = |line: Line| from.is_none_or(|from| line > from);
            let heads = self.rows.iter().filter(|((at, line), _)| *at == of.0 && behind(*line));
            let heads =
                heads.filter_map(|((_, line), rows)| Some((*line, rows.values().next()?.when <= now)));
            let lines: Vec<_> = heads.take(PAGE).collect();
            let more = lines.len() == PAGE;
            look.walks.push((of, from, LinesPage { lines, more }));
        }
        let read = !(look.keys.is_empty() && look.walks.is_empty());
        self.look = read.then_some(look);
    }

    /// Hands over what was read before, of the receivers that are kept.
    fn looked(&mut self, schedule: &mut Schedule, keep: impl Fn(TargetRef) -> bool, now: Moment) {
        let Some(look) = self.look.take() else { return };
        for (of, (rows, complete)) in look.keys.into_iter().filter(|(of, _)| keep(of.0)) {
            if rows.iter().any(|(due, _)| look.landed.contains(&due.id)) {
                schedule.key_not_loaded(of);
            } else {
                schedule.key_loaded(of, rows, complete, now);
            }
        }
        for (of, from, page) in look.walks.into_iter().filter(|(of, ..)| keep(of.0)) {
            schedule.walked(of, from, &page, now);
        }
    }

    /// All look-ups that are wanted, one after another.
    fn answer(&mut self, schedule: &mut Schedule, now: Moment) {
        self.looked(schedule, |_| true, now);
        for _ in 0..10_000 {
            self.look(schedule, now);
            if self.look.is_none() {
                return;
            }
            self.looked(schedule, |_| true, now);
        }
        panic!("look-ups without an end");
    }

    /// A sweep finds what became due since the last one, in no order that means anything.
    fn sweep(&mut self, schedule: &mut Schedule, now: Moment) {
        for row in self.rows.values_mut().flat_map(BTreeMap::values_mut).rev() {
            if row.when <= now && !row.swept {
                row.swept = true;
                schedule.offer_found(row.due, now);
            }
        }
    }

    /// The next sweep starts from the beginning.
    fn rewind(&mut self) {
        self.rows.values_mut().flat_map(BTreeMap::values_mut).for_each(|row| row.swept = false);
    }

    fn land(&mut self, schedule: &mut Schedule, due: Due, landing: Landing, now: Moment) {
        let line = ((due.tenant, due.target), (due.order.expect("ordered"), Kind::of(&due)));
        let rows = self.rows.entry(line).or_default();
        match (landing.answer, landing.again_in) {
            // Nothing was written, and sweeps begin anew.
            (LandingAnswer::NotCalled, Some(_)) => self.rewind(),
            // It was ended by somebody else.
            (LandingAnswer::NotCalled, None) => {
                rows.remove(&due.position);
                self.published -= 1;
            }
            (_, Some(wait)) => {
                rows.insert(due.position, Row { due, when: now + wait, swept: false });
            }
            (_, None) => {
                rows.remove(&due.position);
                self.ended.entry(line).or_default().push(due.position);
            }
        }
        self.look.iter_mut().for_each(|look| {
            look.landed.insert(due.id);
        });
        land(schedule, &due, landing, now);
    }

    fn is_empty_but_for(&self, keys: impl Fn(i64) -> bool) -> bool {
        self.rows.iter().all(|((_, (key, _)), rows)| rows.is_empty() || keys(*key))
    }

    /// A round: what may go goes, each landing as `how` says; then a sweep and the look-ups. `false`: nothing went.
    fn round(&mut self, schedule: &mut Schedule, now: Moment, how: impl Fn(&Due) -> Landing) -> bool {
        let taken: Vec<Due> = std::iter::from_fn(|| schedule.take(now, free)).collect();
        for due in &taken {
            self.land(schedule, *due, how(due), now);
        }
        self.sweep(schedule, now);
        self.answer(schedule, now);
        !taken.is_empty()
    }
}

const fn landing(answer: LandingAnswer, again_ms: Option<u64>) -> Landing {
    let again_in = match again_ms {
        Some(ms) => Some(Duration::from_millis(ms)),
        None => None,
    };
    Landing { answer, again_in }
}

const WELL: Landing = landing(LandingAnswer::Well, None);
/// It is tried again, and the breaker is left out of the play.
const AGAIN: Landing = landing(LandingAnswer::Well, Some(50));
const ROUND: Duration = Duration::from_millis(500);

fn small(lines_max: usize, held_max: usize) -> Schedule {
    Schedule { lines_max, ..Schedule::new(8, held_max) }
}

/// So many lines are in memory of a receiver at most, those in flight included.
fn is_bounded(schedule: &Schedule, lines_max: usize) -> bool {
    let bound = lines_max + (lines_max / 4).max(1) + schedule.places;
    schedule.targets.values().all(|target| target.keys.count() <= bound)
        && schedule.lines == schedule.targets.values().map(|target| target.keys.count()).sum::<usize>()
}

#[test]
fn of_a_million_keys_of_a_receiver_that_hangs_a_few_are_in_memory() {
    let mut schedule = Schedule::new(1000, 50_000);
    for key in 0..1_000_000 {
        schedule.offer(Due { order: Some(key), position: key, ..due(1, 1) }, NOW);
    }
    let asked = schedule.wants();
    assert_eq!(asked.keys.len(), LINES_MAX, "they are looked up");
    assert_eq!(asked.walks.len(), 0, "and there is no room for others");
    for (of, heads) in asked.keys {
        let one = Due { order: Some(of.1.0), position: of.1.0, ..due(1, 1) };
        let rows = (0..heads as i64).map(|n| (Due { id: DeliveryId::fresh(), position: n, ..one }, NOW));
        schedule.key_loaded(of, rows.collect(), false, NOW);
    }
    assert!(schedule.held() <= 2000, "of many keys a few deliveries each: {}", schedule.held());
    assert!(is_bounded(&schedule, LINES_MAX));
}

#[test]
fn keys_that_fail_again_and_again_keep_no_others_out() {
    let (mut model, mut schedule, mut now) = (Model::default(), small(16, 10_000), NOW);
    for position in 0..1200 {
        let due = model.publish((1, position % 400), position, false);
        schedule.offer(due, now);
    }
    let fails = |key: i64| key % 2 == 0;
    for _ in 0..600 {
        model.round(&mut schedule, now, |due| if due.order.is_some_and(fails) { AGAIN } else { WELL });
        now += ROUND;
        assert!(is_bounded(&schedule, 16));
    }
    assert!(model.is_empty_but_for(fails), "those that do not fail have arrived");
    assert!(!model.is_empty_but_for(|_| false));
}

#[test]
fn keys_with_ever_more_to_send_keep_no_others_out() {
    let (mut model, mut schedule, mut now) = (Model::default(), small(4, 10_000), NOW);
    let is_busy = |key: i64| key < 8;
    let mut positions = 0..;
    let mut publish = |model: &mut Model, schedule: &mut Schedule, keys: std::ops::Range<i64>, now| {
        for (key, position) in keys.zip(&mut positions) {
            let due = model.publish((1, key), position, false);
            schedule.offer(due, now);
        }
    };
    (0..20).for_each(|_| publish(&mut model, &mut schedule, 0..8, now));
    publish(&mut model, &mut schedule, 8..60, now);
    for _ in 0..400 {
        (0..3).for_each(|_| publish(&mut model, &mut schedule, 0..8, now));
        model.round(&mut schedule, now, |_| WELL);
        now += ROUND;
        assert!(is_bounded(&schedule, 4));
    }
    assert!(model.is_empty_but_for(is_busy), "the others have arrived");
}

#[test]
fn a_replay_of_many_keys_keeps_no_live_delivery_out() {
    let (mut model, mut schedule) = (Model::default(), small(16, 10_000));
    for position in 0..200 {
        let due = model.publish((1, position), position, true);
        schedule.offer_found(due, NOW);
    }
    model.answer(&mut schedule, NOW);
    let live = model.publish((1, 1000), 200, false);
    schedule.offer(live, NOW);
    model.answer(&mut schedule, NOW);
    assert_eq!(schedule.take(NOW, free), Some(live));
}

proptest! {
    /// With hardly any room, so that keys are left in the database and forgotten all the time.
    #[test]
    fn of_a_key_one_is_in_flight_and_the_order_is_kept(
        steps in proptest::collection::vec((0u8..14, 0u128..2, 0i64..9, any::<bool>()), 1..500),
        (lines_max, held_max) in (prop_oneof![1usize..6, Just(LINES_MAX)], prop_oneof![Just(4usize), Just(10_000)]),
        fails in proptest::collection::hash_set(0i64..9, 0..7),
    ) {
        let (mut model, mut schedule) = (Model::default(), small(lines_max, held_max));
        let mut gap = false;
        let (mut now, mut flying): (Moment, Vec<Due>) = (NOW, Vec::new());
        for (position, (step, target, key, lags)) in (1i64..).zip(steps) {
            match step {
                0 | 1 | 9 => {
                    let due = model.publish((target, key), position, step == 9);
                    if std::mem::take(&mut gap) { schedule.doubt(); }
                    schedule.offer(due, now);
                }
                // Another process publishes, or there is no room to hand it over.
                5 | 6 => {
                    model.publish((target, key), position, step == 6);
                    gap = true;
                }
                7 => model.sweep(&mut schedule, now),
                // A receiver's lane is given away, or a look-up failed, and it is taken over at once.
                8 => {
                    let keep = |at: TargetRef| target == 0 || at.1.as_u128() == 0;
                    schedule.keep_lanes(keep, now);
                    model.looked(&mut schedule, keep, now);
                    model.rewind();
                }
                2 | 12 | 13 => flying.extend(schedule.take(now, free)),
                _ if flying.is_empty() => {}
                11 => schedule.put_back(&flying.remove(0), now),
                _ => {
                    let how = match (step, lags) {
                        (3, _) => WELL,
                        (4, _) => landing(LandingAnswer::Badly, Some(50)),
                        (_, true) => landing(LandingAnswer::NotCalled, Some(20)),
                        (_, false) => landing(LandingAnswer::NotCalled, None),
                    };
                    let done = flying.remove(0);
                    model.land(&mut schedule, done, how, now);
                }
            }
            if lags { model.look(&mut schedule, now) } else { model.answer(&mut schedule, now) }
            now += Duration::from_millis(3);
            let keys: HashSet<_> = flying.iter().map(|due| (due.target, due.order)).collect();
            prop_assert_eq!(keys.len(), flying.len(), "two of a key in flight");
            prop_assert!(is_bounded(&schedule, lines_max));
        }
        for due in flying { model.land(&mut schedule, due, WELL, now); }
        let has_failed = |due: &Due| due.order.is_some_and(|key| fails.contains(&key));
        for _ in 0..100 {
            if model.is_empty_but_for(|key| fails.contains(&key)) { break; }
            // What is live goes first, also what fails, so each gets all the turns that there are.
            while model.round(&mut schedule, now, |due| if has_failed(due) { AGAIN } else { WELL }) {}
            now += ROUND;
        }
        prop_assert!(model.is_empty_but_for(|key| fails.contains(&key)), "what fails keeps the others out");
        for _ in 0..100 {
            if model.is_empty_but_for(|_| false) { break; }
            while model.round(&mut schedule, now, |_| WELL) {}
            now += ROUND;
        }
        let ended: usize = model.ended.values().map(Vec::len).sum();
        prop_assert_eq!(ended, model.published, "nothing is lost");
        for order in model.ended.values() {
            prop_assert!(order.is_sorted(), "no overtaking: {:?}", order);
        }
        model.answer(&mut schedule, now);
        prop_assert_eq!((schedule.held(), schedule.lines), (0, 0));
    }
}
