//! The times of a pattern, above all where a clock is put forward or back.

use proptest::prelude::*;

use super::*;

fn table(cron: &str, zone: &str) -> Timetable {
    Timetable::stored(cron, zone).expect("a timetable")
}

fn utc(text: &str) -> Timestamp {
    DateTime::parse_from_rfc3339(text).expect("a time").to_utc()
}

/// The next times after one, each with its offset.
fn times(cron: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
    let zone_of: Tz = zone.parse().expect("a zone");
    table(cron, zone)
        .after(utc(after))
        .take(count)
        .map(|at| at.with_timezone(&zone_of).format("%d.%m. %H:%M:%S %:z").to_string())
        .collect()
}

// In Berlin the clock goes from 02:00 to 03:00 on 28 March 2027, and from 03:00 back to 02:00 on 31 October 2027.

#[test]
fn a_time_of_the_clock_that_does_not_exist_comes_right_after_the_gap() {
    let found = times("30 2 * * *", "Europe/Berlin", "2027-03-26T12:00:00Z", 3);
    assert_eq!(found, ["27.03. 02:30:00 +01:00", "28.03. 03:00:00 +02:00", "29.03. 02:30:00 +02:00"]);
}

#[test]
fn several_of_them_come_together_once() {
    let found = times("15,45 2,3 28 3 *", "Europe/Berlin", "2027-03-01T00:00:00Z", 3);
    assert_eq!(found, ["28.03. 03:00:00 +02:00", "28.03. 03:15:00 +02:00", "28.03. 03:45:00 +02:00"]);
}

#[test]
fn a_time_of_the_clock_that_exists_twice_comes_the_first_time_only() {
    let found = times("30 2 * * *", "Europe/Berlin", "2027-10-30T12:00:00Z", 2);
    assert_eq!(found, ["31.10. 02:30:00 +02:00", "01.11. 02:30:00 +01:00"]);
    // Also where there are several, which croner by itself would repeat.
    let found = times("0,30 1,2,3 31 10 *", "Europe/Berlin", "2027-10-30T22:00:00Z", 6);
    let clock: Vec<&str> = found.iter().map(|text| &text[7..12]).collect();
    assert_eq!(clock, ["01:00", "01:30", "02:00", "02:30", "03:00", "03:30"]);
}

#[test]
fn what_recurs_leaves_out_the_gap_and_runs_through_the_repeated_hour() {
    let found = times("*/30 * * * *", "Europe/Berlin", "2027-03-28T00:00:00Z", 3);
    assert_eq!(found, ["28.03. 01:30:00 +01:00", "28.03. 03:00:00 +02:00", "28.03. 03:30:00 +02:00"]);
    let found = times("*/30 * * * *", "Europe/Berlin", "2027-10-30T23:40:00Z", 6);
    assert_eq!(
        found,
        [
            "31.10. 02:00:00 +02:00",
            "31.10. 02:30:00 +02:00",
            "31.10. 02:00:00 +01:00",
            "31.10. 02:30:00 +01:00",
            "31.10. 03:00:00 +01:00",
            "31.10. 03:30:00 +01:00",
        ]
    );
}

#[test]
fn every_minute_is_every_minute_whatever_the_clock_does() {
    for day in ["2027-03-27T23:30:00Z", "2027-10-30T23:30:00Z"] {
        let found: Vec<_> = table("* * * * *", "Europe/Berlin").after(utc(day)).take(240).collect();
        assert!(found.windows(2).all(|pair| pair[1] - pair[0] == TimeDelta::minutes(1)), "{day}");
    }
}

#[test]
fn zones_with_odd_changes_keep_the_rules() {
    // Half an hour forward and back.
    let found = times("15 2 3 10 *", "Australia/Lord_Howe", "2027-10-01T00:00:00Z", 1);
    assert_eq!(found, ["03.10. 02:30:00 +11:00"]);
    // At midnight: the day begins at 01:00.
    let found = times("0 0 * * *", "Africa/Cairo", "2027-04-29T12:00:00Z", 1);
    assert_eq!(found, ["30.04. 01:00:00 +03:00"]);
    // A day that never was.
    let found = times("0 12 30 12 *", "Pacific/Apia", "2011-12-01T00:00:00Z", 2);
    assert_eq!(found, ["31.12. 00:00:00 +14:00", "30.12. 12:00:00 +14:00"]);
}

#[test]
fn days_are_counted_as_written() {
    let at = "2027-01-01T00:00:00Z";
    assert_eq!(times("0 0 L 2 *", "UTC", at, 1), ["28.02. 00:00:00 +00:00"]);
    assert_eq!(times("0 0 * * FRI#L", "UTC", at, 1), ["29.01. 00:00:00 +00:00"]);
    assert_eq!(times("0 0 * * 1#1", "UTC", at, 1), ["04.01. 00:00:00 +00:00"]);
    assert_eq!(times("0 0 15W 8 *", "UTC", at, 1), ["16.08. 00:00:00 +00:00"]);
    assert_eq!(times("0 0 13 * FRI", "UTC", at, 2), ["08.01. 00:00:00 +00:00", "13.01. 00:00:00 +00:00"]);
    assert_eq!(times("*/20 * * * * *", "UTC", at, 2), ["01.01. 00:00:20 +00:00", "01.01. 00:00:40 +00:00"]);
}

#[test]
fn what_never_comes_has_no_next_time() {
    assert_eq!(table("0 0 30 2 *", "UTC").next_after(utc("2027-01-01T00:00:00Z")), None);
    assert_eq!(table("* * 31 4,6 *", "Europe/Berlin").next_after(utc("2027-01-01T00:00:00Z")), None);
}

#[test]
fn the_last_times_are_found_without_a_walk_over_all() {
    let table = table("* * * * * *", "Europe/Berlin");
    let (first, end) = (utc("2024-01-01T00:00:00Z"), utc("2027-01-01T00:00:00.5Z"));
    assert_eq!(table.last_before(first, end), utc("2027-01-01T00:00:00Z"));
    assert_eq!(table.first_of_last(1000, first, end), utc("2026-12-31T23:43:21Z"));
    assert_eq!(table.first_of_last(1000, utc("2026-12-31T23:59:00Z"), end), utc("2026-12-31T23:59:00Z"));
}

const ZONES: [&str; 6] =
    ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/Santiago"];

fn patterns() -> impl Strategy<Value = String> {
    let second =
        prop_oneof![Just("0".to_owned()), Just("*/20".to_owned()), (0_u32..60).prop_map(|n| n.to_string())];
    let minute = prop_oneof![
        Just("*".to_owned()),
        (1_u32..31).prop_map(|n| format!("*/{n}")),
        (0_u32..30, 30_u32..60).prop_map(|(a, b)| format!("{a},{b}"))
    ];
    let hour = prop_oneof![
        Just("*".to_owned()),
        (0_u32..4).prop_map(|n| n.to_string()),
        (0_u32..3, 3_u32..24).prop_map(|(a, b)| format!("{a}-{b}/2"))
    ];
    (second, minute, hour).prop_map(|(second, minute, hour)| format!("{second} {minute} {hour} * * *"))
}

/// Around a change of the clock somewhere in 2027, or anywhere.
fn moments() -> impl Strategy<Value = Timestamp> {
    let changes = [
        "2027-03-28T01:00:00Z",
        "2027-10-31T01:00:00Z",
        "2027-03-14T07:00:00Z",
        "2027-11-07T06:00:00Z",
        "2027-04-03T15:00:00Z",
        "2027-10-02T15:30:00Z",
        "2027-04-04T03:00:00Z",
        "2027-09-05T04:00:00Z",
    ];
    (proptest::sample::select(changes.to_vec()), -10_000_i64..10_000, 0..1_000_000_i64).prop_map(
        |(change, seconds, micros)| {
            utc(change) + TimeDelta::seconds(seconds) + TimeDelta::microseconds(micros)
        },
    )
}

/// Does the pattern name this moment, by the rules in words? By looking at each local second once or twice.
fn named(table: &Timetable, at: Timestamp) -> bool {
    let local = at.with_timezone(&table.zone);
    let fits = |local: NaiveDateTime| table.pattern.cron.is_time_matching(&local).expect("a match or not");
    if table.pattern.recurs {
        return fits(local.naive_local());
    }
    let first = table.zone.from_local_datetime(&local.naive_local()).earliest().expect("it exists") == local;
    let just_before = (at - SECOND).with_timezone(&table.zone).naive_local() + SECOND;
    let mut skipped = just_before;
    while skipped < local.naive_local() {
        if fits(skipped) {
            return true;
        }
        skipped += SECOND;
    }
    first && fits(local.naive_local())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn the_next_time_is_the_first_that_is_named(cron in patterns(), zone in proptest::sample::select(ZONES.to_vec()), at in moments()) {
        let table = table(&cron, zone);
        let next = table.next_after(at).expect("there is always one more");
        prop_assert!(next > at && next.timestamp_subsec_nanos() == 0);
        prop_assert!(named(&table, next), "{next} is not one of {table:?}");
        let mut between = DateTime::from_timestamp(at.timestamp() + 1, 0).expect("a time");
        // Where the next one is far, only the hours around the change of the clock are looked at.
        let until = next.min(at + TimeDelta::hours(4));
        while between < until {
            prop_assert!(!named(&table, between), "{between} was left out of {table:?} after {at}");
            between += SECOND;
        }
    }

    #[test]
    fn later_questions_have_later_answers(cron in patterns(), zone in proptest::sample::select(ZONES.to_vec()), at in moments(), later in 0_i64..20_000) {
        let table = table(&cron, zone);
        prop_assert!(table.next_after(at) <= table.next_after(at + TimeDelta::seconds(later)));
    }

    #[test]
    fn the_shortcuts_agree_with_a_walk(cron in patterns(), zone in proptest::sample::select(ZONES.to_vec()), at in moments(), span in 1_i64..6_000, count in 1_usize..50) {
        let table = table(&cron, zone);
        let first = table.next_after(at).expect("one more");
        let end = first + TimeDelta::seconds(span);
        let walked: Vec<_> = std::iter::once(first).chain(table.after(first)).take_while(|at| *at <= end).collect();
        let before: Vec<_> = walked.iter().filter(|at| **at < end).collect();
        prop_assert_eq!(Some(&&table.last_before(first, end)), before.last());
        prop_assert_eq!(table.first_of_last(count, first, end), walked[walked.len().saturating_sub(count)]);
    }
}
