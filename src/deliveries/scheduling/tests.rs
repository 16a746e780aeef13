//! The schedule: turns, windows, caps, room. What has an order is in `order`.

mod order;

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn due(tenant: u128, target: u128) -> Due {
    Due {
        tenant: TenantId::from_uuid(Uuid::from_u128(tenant)),
        id: DeliveryId::fresh(),
        target: Uuid::from_u128(target),
        lane: 0,
        order: None,
        position: 0,
        replay: false,
    }
}

const WELL: Landing = Landing { answer: LandingAnswer::Well, again_in: None };
const BADLY: Landing = Landing { answer: LandingAnswer::Badly, again_in: None };
const NOW: Moment = Moment::from_secs(1);

/// It goes on the wire, the receiver answers, and that is recorded, all at once.
fn land(schedule: &mut Schedule, due: &Due, landing: Landing, now: Moment) {
    schedule.fly_unasked((due.tenant, due.target));
    schedule.answered(due, (landing.answer, Duration::ZERO), now);
    schedule.recorded(due, landing, now);
}

fn free(_: TargetRef) -> Option<Duration> {
    None
}

#[test]
fn a_loud_tenant_takes_every_second_turn_only() {
    let mut schedule = Schedule::new(100, 10_000);
    for _ in 0..50 {
        schedule.offer(due(1, 1), NOW);
    }
    schedule.offer(due(2, 2), NOW);
    schedule.offer(due(2, 3), NOW);
    let tenants: Vec<u128> = std::iter::from_fn(|| schedule.take(NOW, free))
        .map(|due| due.tenant.uuid().as_u128())
        .take(4)
        .collect();
    assert_eq!(tenants, [1, 2, 1, 2]);
}

#[test]
fn what_is_known_is_not_taken_twice() {
    let mut schedule = Schedule::new(10, 10);
    let one = due(1, 1);
    assert_eq!(schedule.offer(one, NOW), Offer::Taken);
    assert_eq!(schedule.offer(one, NOW), Offer::Known);
    let taken = schedule.take(NOW, free).expect("one");
    assert_eq!(schedule.offer(one, NOW), Offer::Known);
    land(&mut schedule, &taken, WELL, NOW);
    assert_eq!(schedule.offer(one, NOW), Offer::Taken);
}

#[test]
fn the_window_opens_with_success_and_the_breaker_with_failures() {
    let mut schedule = Schedule::new(1000, 10_000);
    (0..32).for_each(|_| assert_eq!(schedule.offer(due(1, 1), NOW), Offer::Taken));
    let mut flying: Vec<Due> = std::iter::from_fn(|| schedule.take(NOW, free)).collect();
    assert_eq!(flying.len(), 2, "an unknown receiver gets a few");
    while flying.len() < 32 {
        for _ in 0..2 {
            schedule.offer(due(1, 1), NOW);
        }
        let done = flying.remove(0);
        land(&mut schedule, &done, WELL, NOW);
        flying.extend(std::iter::from_fn(|| schedule.take(NOW, free)));
    }
    assert_eq!(flying.len(), 32, "a good one gets its cap");
    for done in std::mem::take(&mut flying) {
        land(&mut schedule, &done, BADLY, NOW);
    }
    assert_eq!(schedule.take(NOW, free), None, "the breaker is open");
    let later = NOW + Duration::from_millis(1100);
    assert!(schedule.take(later, free).is_some(), "half-open: one probe");
    assert_eq!(schedule.take(later, free), None, "and no second one");
}

#[test]
fn unproven_receivers_leave_places_to_the_others() {
    let mut schedule = Schedule::new(8, 10_000);
    let good = due(1, 1);
    schedule.offer(good, NOW);
    let good = schedule.take(NOW, free).expect("the good one");
    land(&mut schedule, &good, WELL, NOW);
    for target in 100..200 {
        schedule.offer(due(2, target), NOW);
    }
    let hanging = std::iter::from_fn(|| schedule.take(NOW, free)).count();
    assert_eq!(hanging, 6, "three quarters of the places");
    schedule.offer(due(1, 1), NOW);
    assert_eq!(schedule.take(NOW, free).map(|due| due.target), Some(good.target));
}

#[test]
fn a_receiver_on_its_rate_limit_waits_for_its_time() {
    let mut schedule = Schedule::new(8, 100);
    schedule.offer(due(1, 1), NOW);
    assert_eq!(schedule.take(NOW, |_| Some(Duration::from_millis(20))), None);
    assert_eq!(schedule.next_timer(), Some(NOW + Duration::from_millis(20)));
    assert!(schedule.take(NOW + Duration::from_millis(20), free).is_some());
}

#[test]
fn what_was_left_in_the_database_is_not_overtaken() {
    let mut schedule = Schedule::new(4, 100_000);
    let all: Vec<Due> = (0..2000).map(|_| due(1, 1)).collect();
    let taken = all.iter().filter(|due| schedule.offer(**due, NOW) == Offer::Taken).count();
    assert!(taken < all.len(), "not all fit");
    let mut order = Vec::new();
    while order.len() < all.len() {
        let next = schedule.take(NOW, free).expect("there is always one");
        order.push(next.id);
        land(&mut schedule, &next, WELL, NOW);
        // One that comes now, and stays behind all that are left.
        schedule.offer(due(1, 1), NOW);
        for at in schedule.wants().refills.iter().map(|refill| refill.of).collect::<Vec<_>>() {
            let waiting = all.iter().filter(|due| !order.contains(&due.id)).take(600).copied();
            schedule.refill(at, waiting.collect::<Vec<_>>(), (true, None), NOW);
        }
    }
    assert!(order.iter().eq(all.iter().map(|due| &due.id)), "first come, first served");
}

fn refills(schedule: &mut Schedule) -> Vec<(BacklogRef, Option<DueCursor>)> {
    schedule.wants().refills.iter().map(|refill| (refill.of, refill.from)).collect()
}

#[test]
fn a_refill_finds_more_than_what_is_out() {
    let mut schedule = Schedule::new(1000, 10);
    let at = (due(1, 1).tenant, due(1, 1).target);
    schedule.set_policy(at, Policy { ahead: 64, ..Policy::default() }, NOW);
    let all: Vec<Due> = (0..500).map(|_| due(1, 1)).collect();
    let (mut out, mut ended): (VecDeque<Due>, usize) = (VecDeque::new(), 0);
    for one in &all {
        schedule.offer(*one, NOW);
    }
    // The database shows them as waiting until they are on record, long after the answer.
    while ended < all.len() {
        while let Some(one) = schedule.take(NOW, free) {
            schedule.fly_unasked(at);
            schedule.answered(&one, (LandingAnswer::Well, Duration::ZERO), NOW);
            out.push_back(one);
        }
        for refill in schedule.wants().refills {
            let page: Vec<Due> = all[ended..].iter().take(refill.limit).copied().collect();
            let more = page.len() == refill.limit;
            let before = schedule.held();
            schedule.refill(refill.of, page, (more, None), NOW);
            assert!(schedule.held() > before || !more, "it brought nothing");
        }
        let one = out.pop_front().expect("nothing is stuck");
        schedule.recorded(&one, WELL, NOW);
        ended += 1;
    }
}

#[test]
fn a_refill_goes_on_behind_what_has_an_order() {
    let mut schedule = Schedule::new(4, 100_000);
    let rows: Vec<Due> = (0..20).map(|key| Due { order: Some(key), ..due(1, 1) }).collect();
    let at = (rows[0].tenant, rows[0].target);
    for paused in [true, false] {
        schedule.set_policy(at, Policy { paused, ..Policy::default() }, NOW);
    }
    assert_eq!(
        refills(&mut schedule),
        Kind::BOTH.map(|kind| ((at, kind), None)),
        "something may have come meanwhile"
    );
    let cursor = Some((crate::clock::Timestamp::UNIX_EPOCH, rows[19].id));
    schedule.refill((at, Kind::Live), rows, (true, cursor), NOW);
    assert_eq!(refills(&mut schedule), [((at, Kind::Live), cursor)]);
    schedule.refill((at, Kind::Live), [], (false, None), NOW);
    assert_eq!(schedule.wants().refills, [], "and ends");
}

#[test]
fn what_hangs_fills_its_share_of_the_memory_only() {
    let mut schedule = Schedule::new(40, 1000);
    let good = due(1, 1);
    schedule.offer(good, NOW);
    let good = schedule.take(NOW, free).expect("the good one");
    land(&mut schedule, &good, WELL, NOW);
    for target in 100..200 {
        (0..50).for_each(|_| assert_ne!(schedule.offer(due(1, target), NOW), Offer::Known));
    }
    let hanging = std::iter::from_fn(|| schedule.take(NOW, free)).count();
    assert_eq!(hanging, 30, "three quarters of the places");
    assert!(schedule.held() >= 1000, "the memory is full");
    assert_eq!(schedule.wants().refills, [], "and nobody asks for what has no room");
    for _ in 0..20 {
        assert_eq!(schedule.offer(due(1, 1), NOW), Offer::Taken, "a good one is not kept out");
        let taken = schedule.take(NOW, free).expect("it goes at once");
        assert_eq!(taken.target, good.target);
        land(&mut schedule, &taken, WELL, NOW);
    }
    assert!(schedule.held() < 1000 + 100 * 16);
}

#[test]
fn replays_give_way() {
    let mut schedule = Schedule::new(8, 100);
    schedule.offer(Due { replay: true, ..due(1, 1) }, NOW);
    schedule.offer(due(1, 1), NOW);
    assert_eq!(schedule.take(NOW, free).map(|due| due.replay), Some(false));
}

#[test]
fn replays_of_many_receivers_leave_places_to_what_is_live() {
    let mut schedule = Schedule::new(8, 10_000);
    for target in 100..200 {
        schedule.offer(due(1, target), NOW);
        let first = schedule.take(NOW, free).expect("one");
        land(&mut schedule, &first, WELL, NOW);
    }
    for target in 100..200 {
        schedule.offer(Due { replay: true, ..due(1, target) }, NOW);
    }
    let mut flying: Vec<Due> = std::iter::from_fn(|| schedule.take(NOW, free)).collect();
    assert_eq!(flying.len(), 4, "half of the places");
    schedule.offer(due(1, 199), NOW);
    assert_eq!(schedule.take(NOW, free).map(|due| due.replay), Some(false), "its replay waits, it does not");
    let mut sent = 0;
    while let Some(done) = flying.pop() {
        sent += 1;
        land(&mut schedule, &done, WELL, NOW);
        flying.extend(std::iter::from_fn(|| schedule.take(NOW, free)));
    }
    assert_eq!(sent, 100, "all get their turn");
}

#[test]
fn a_replay_that_waits_for_its_next_try_blocks_nothing_live_of_its_key() {
    let mut schedule = Schedule::new(8, 100);
    let replay = Due { order: Some(7), position: 1, replay: true, ..due(1, 1) };
    let live = Due { order: Some(7), position: 1, ..due(1, 1) };
    let at = (replay.tenant, replay.target);
    schedule.offer(replay, NOW);
    schedule.key_loaded((at, (7, Kind::Replays)), vec![(replay, NOW)], true, NOW);
    let flying = schedule.take(NOW, free).expect("the replay");
    schedule.offer(live, NOW);
    assert_eq!(
        schedule.wants().keys,
        [((at, (7, Kind::Replays)), 16)],
        "while it flies nobody asks for its key"
    );
    assert_eq!(schedule.take(NOW, free), None, "one of a key at a time");
    land(
        &mut schedule,
        &flying,
        Landing { answer: LandingAnswer::Badly, again_in: Some(Duration::from_mins(1)) },
        NOW,
    );
    assert_eq!(schedule.wants().keys, [((at, (7, Kind::Live)), 16)]);
    schedule.key_loaded((at, (7, Kind::Live)), vec![(live, NOW)], true, NOW);
    assert_eq!(schedule.take(NOW, free), Some(live));
}

#[test]
fn a_long_replay_leaves_no_live_delivery_in_the_database() {
    let mut schedule = Schedule::new(8, 100_000);
    let replay = || Due { replay: true, ..due(1, 1) };
    let taken = (0..1000).filter(|_| schedule.offer(replay(), NOW) == Offer::Taken).count();
    assert!((1..512).contains(&taken), "a few of them are held: {taken}");
    assert_eq!(schedule.offer(due(1, 1), NOW), Offer::Taken, "there is room for what is live");
    assert_eq!(schedule.take(NOW, free).map(|due| due.replay), Some(false));
    // Also while replays are refilled.
    let at = (TenantId::from_uuid(Uuid::from_u128(1)), Uuid::from_u128(1));
    while !schedule.wants().refills.iter().any(|refill| refill.of == (at, Kind::Replays)) {
        let next = schedule.take(NOW, free).expect("one of them");
        land(&mut schedule, &next, WELL, NOW);
    }
    assert_eq!(schedule.offer(due(1, 1), NOW), Offer::Taken);
}

proptest! {
    #[test]
    fn caps_hold_and_nothing_is_lost(steps in proptest::collection::vec((0u8..5, 0u128..3, 0u128..4), 1..400)) {
        let mut schedule = Schedule::new(6, 10_000);
        for tenant in 0..3 {
            for target in 0..4 {
                let at = (TenantId::from_uuid(Uuid::from_u128(tenant)), Uuid::from_u128(target));
                schedule.set_policy(at, Policy { cap: 2, ahead: 3, paused: false }, NOW);
            }
        }
        let (mut aboard, mut flying): (VecDeque<Due>, Vec<Due>) = (VecDeque::new(), Vec::new());
        let (mut offered, mut sent) = (0usize, 0usize);
        let board = |schedule: &mut Schedule, aboard: &mut VecDeque<Due>, flying: &mut Vec<Due>| {
            aboard.retain(|due| {
                let flies = schedule.fly((due.tenant, due.target), NOW);
                flying.extend(flies.then_some(*due));
                !flies
            });
        };
        for (step, tenant, target) in steps {
            match step {
                0 => offered += usize::from(schedule.offer(due(tenant, target), NOW) == Offer::Taken),
                1 => aboard.extend(schedule.take(NOW, free)),
                2 => board(&mut schedule, &mut aboard, &mut flying),
                3 => if let Some(due) = aboard.pop_back() { schedule.put_back(&due, NOW); },
                _ => if !flying.is_empty() {
                    let done = flying.remove(0);
                    schedule.answered(&done, (LandingAnswer::Well, Duration::ZERO), NOW);
                    schedule.recorded(&done, WELL, NOW);
                    sent += 1;
                },
            }
            let mut counts: HashMap<TargetRef, usize> = HashMap::new();
            for due in &flying {
                *counts.entry((due.tenant, due.target)).or_default() += 1;
            }
            prop_assert!(counts.values().all(|count| *count <= 2) && flying.len() + aboard.len() <= 6);
            prop_assert_eq!(schedule.in_flight(), flying.len() + aboard.len());
        }
        loop {
            aboard.extend(std::iter::from_fn(|| schedule.take(NOW, free)));
            board(&mut schedule, &mut aboard, &mut flying);
            if flying.is_empty() { break; }
            for due in std::mem::take(&mut flying) {
                schedule.answered(&due, (LandingAnswer::Well, Duration::ZERO), NOW);
                schedule.recorded(&due, WELL, NOW);
                sent += 1;
            }
        }
        prop_assert!(aboard.is_empty());
        prop_assert_eq!(sent, offered);
        prop_assert_eq!(schedule.held(), 0);
    }
}
