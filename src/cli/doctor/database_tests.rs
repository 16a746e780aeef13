//! The judges, with facts at hand.

use super::super::report::Status;
use super::*;

fn server() -> ServerFacts {
    ServerFacts {
        version_number: 150_018,
        version: "15.18".to_owned(),
        is_standby: false,
        now: clock::now(),
        synchronous_commit: "on".to_owned(),
        fsync: "on".to_owned(),
        full_page_writes: "on".to_owned(),
        autovacuum: "on".to_owned(),
        max_connections: 100,
        connections: 5,
        wraparound_age: 1_000,
    }
}

#[test]
fn a_server_must_be_new_enough_and_writable() {
    assert_eq!(version(&server()).status, Status::Ok);
    assert_eq!(version(&ServerFacts { version_number: 130_009, ..server() }).status, Status::Fail);
    assert_eq!(version(&ServerFacts { is_standby: true, ..server() }).status, Status::Fail);
}

#[test]
fn a_setting_that_loses_data_fails_with_the_statement_that_mends_it() {
    let found = durability(&ServerFacts {
        synchronous_commit: "off".to_owned(),
        fsync: "off".to_owned(),
        ..server()
    });
    assert_eq!(found.iter().map(|check| check.status).collect::<Vec<_>>(), [Status::Fail, Status::Fail]);
    assert!(found[1].fix.as_deref().is_some_and(|fix| fix.starts_with("ALTER SYSTEM SET fsync = on")));
    let found = durability(&ServerFacts { synchronous_commit: "remote_apply".to_owned(), ..server() });
    assert_eq!(found[0].status, Status::Ok);
}

#[test]
fn a_clock_may_be_five_seconds_off_and_a_slow_answer_is_no_skew() {
    let at = |seconds: i64| clock::now() + chrono::TimeDelta::seconds(seconds);
    assert_eq!(skew(at(0), at(30), at(15)).status, Status::Ok);
    assert_eq!(skew(at(0), at(0), at(4)).status, Status::Ok);
    let ahead = skew(at(0), at(0), at(60));
    assert!(ahead.status == Status::Warn && ahead.finding.contains("ahead of"), "{ahead:?}");
    assert!(skew(at(0), at(0), at(-60)).finding.contains("behind"));
}

#[test]
fn who_holds_dead_rows_is_named() {
    let holder = |open_s, idle_s| Holder {
        pid: 42,
        application: String::new(),
        state: "idle in transaction".to_owned(),
        open_s,
        idle_s,
        xmin_age: 9_000,
    };
    assert_eq!(holders(&[])[0].status, Status::Ok);
    assert_eq!(holders(&[holder(20.0, 20.0)])[0].status, Status::Ok);
    let found = holders(&[holder(400.0, 0.0), holder(90.0, 90.0)]);
    assert!(
        found[0].finding.contains("process 42 (unnamed") && found[0].finding.contains("9,000 transactions")
    );
    assert!(found[1].finding.contains("idle in one for 90 s"), "{found:?}");
}

#[test]
fn the_age_of_the_oldest_row_warns_long_before_it_stops_writes() {
    let statuses = [1, WRAPAROUND_WARN, WRAPAROUND_FAIL].map(|age| wraparound(age).status);
    assert_eq!(statuses, [Status::Ok, Status::Warn, Status::Fail]);
}

#[test]
fn a_missing_partition_of_today_fails_and_of_tomorrow_warns() {
    let missing = |ahead| partitions(&[("jobs_20260101".to_owned(), ahead)]).status;
    assert_eq!((partitions(&[]).status, missing(0), missing(1)), (Status::Ok, Status::Fail, Status::Warn));
}

#[test]
fn a_long_backlog_is_estimated_and_says_so() {
    let tables = [HotTable { name: "job_ready".to_owned(), live: 2_000_000, dead: 3, vacuumed_s: None }];
    let found = backlog(&[("job_ready", COUNTED_MAX + 1), ("job_leases", 7)], &tables);
    assert!(
        found.finding.contains("ready more than 10,000 (by the statistics about 2,000,000)"),
        "{found:?}"
    );
    assert!(found.finding.contains("running 7"), "{found:?}");
}

#[test]
fn work_without_anybody_to_do_it_is_worth_a_warning() {
    let node = |is_alive| NodeFacts { id: uuid::Uuid::nil(), name: "host:1".to_owned(), is_alive };
    assert_eq!(workers(&[node(false)], true).status, Status::Warn);
    assert_eq!(workers(&[node(false)], false).status, Status::Ok);
    assert_eq!(workers(&[node(true)], true).finding, "1 alive: host:1");
}
