//! Reading events by cursor: order, completeness, filters, long polls.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::harness::client::{get_job, list, string};
use crate::harness::{PATIENCE, Receiver, Ringback};

/// Reads on until so many events were seen.
async fn follow(ring: &Ringback, query: &str, mut after: String, count: usize) -> (Vec<Value>, String) {
    let (mut seen, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while seen.len() < count {
        let page = ring.get(&format!("/v1/events?wait_s=5&{query}&after={after}")).await.expect(200).json();
        after = string(&page["next_cursor"]);
        seen.extend(list(&page));
        assert!(Instant::now() < deadline, "only {} of {count} events came", seen.len());
    }
    (seen, after)
}

async fn now(ring: &Ringback) -> String {
    let page = ring.get("/v1/events?after=now").await.expect(200).json();
    assert_eq!(list(&page), Vec::<Value>::new());
    string(&page["next_cursor"])
}

const PUBLISHERS: usize = 8;
const EACH: usize = 40;
const SQL_PUBLISHERS: usize = 4;
const TRANSACTIONS: usize = 6;
const IN_EACH: usize = 5;

/// Publishes over HTTP, one event after the other.
async fn publisher(ring: &Ringback, who: usize) {
    for n in 0..EACH {
        ring.publish("http.tick", json!({ "who": who, "n": n })).await;
    }
}

/// Publishes in transactions that stay open for a while; every third one is rolled back.
async fn sql_publisher(ring: &Ringback, who: usize) {
    let mut sql = ring.sql().await;
    for round in 0..TRANSACTIONS {
        let mut transaction = sql.begin().await.expect("a transaction");
        for n in 0..IN_EACH {
            let rolled_back = round % 3 == 2;
            let data = json!({ "who": 100 + who, "n": round * IN_EACH + n, "rolled_back": rolled_back });
            let sql = format!("SELECT ringback.publish('sql.tick', '{data}')");
            transaction.execute(AssertSqlSafe(sql)).await.expect("published");
            tokio::time::sleep(Duration::from_millis(15 * (who as u64 + 1))).await;
        }
        if round % 3 == 2 {
            transaction.rollback().await.expect("rolled back");
        } else {
            transaction.commit().await.expect("committed");
        }
    }
}

#[tokio::test]
async fn a_cursor_passes_no_late_commit_by() {
    let ring = Ringback::start().await;
    let committed = TRANSACTIONS - TRANSACTIONS / 3;
    let expected = PUBLISHERS * EACH + SQL_PUBLISHERS * committed * IN_EACH;

    let publish = async {
        tokio::join!(
            futures_util::future::join_all((0..PUBLISHERS).map(|who| publisher(&ring, who))),
            futures_util::future::join_all((0..SQL_PUBLISHERS).map(|who| sql_publisher(&ring, who)))
        )
    };
    // Two readers: one that takes what comes, one in small bites.
    let (_, (seen, end), (small, _)) = tokio::join!(
        publish,
        follow(&ring, "limit=250", "AAAAAAAAAAA".to_owned(), expected),
        follow(&ring, "limit=7", "AAAAAAAAAAA".to_owned(), expected)
    );

    let ids: HashSet<String> = seen.iter().map(|event| string(&event["id"])).collect();
    assert_eq!((seen.len(), ids.len()), (expected, expected), "something came twice");
    assert_eq!(seen, small, "the order differs between two readers");
    assert!(seen.iter().all(|event| event["data"]["rolled_back"] != true));
    let mut places: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for event in &seen {
        let number = |name: &str| event["data"][name].as_u64().expect("a number");
        places.entry(number("who")).or_default().push(number("n"));
    }
    assert_eq!(places.len(), PUBLISHERS + SQL_PUBLISHERS);
    for (who, numbers) in places {
        assert!(numbers.is_sorted(), "{who} published {numbers:?}");
    }
    let rest = ring.get(&format!("/v1/events?after={end}")).await.expect(200).json();
    assert_eq!((list(&rest), string(&rest["next_cursor"])), (Vec::new(), end));
}

#[tokio::test]
async fn the_ends_of_jobs_stand_in_the_log() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([200, 404]);
    ring.publish("order.paid", json!(1)).await;
    for _ in 0..2 {
        let id = ring.submit(get_job(&receiver.url("/"))).await;
        ring.wait_for_end(&id).await;
    }
    let (seen, _) = follow(&ring, "types=job.*", "AAAAAAAAAAA".to_owned(), 2).await;
    let types: Vec<String> = seen.iter().map(|event| string(&event["type"])).collect();
    assert_eq!(types, ["job.succeeded", "job.failed"]);
    assert_eq!(seen[0]["data"]["status"], "succeeded");
}

#[tokio::test]
async fn patterns_narrow_and_the_cursor_goes_on() {
    let ring = Ringback::start().await;
    let batch: Vec<Value> = (0..1000)
        .map(|n| json!({"type": if n == 500 { "rare.one.deep" } else { "common" }, "data": n}))
        .collect();
    for _ in 0..6 {
        ring.post("/v1/events/batch", json!({ "events": batch })).await.expect(202);
    }
    now(&ring).await;

    // 6,000 positions take two looks of 5,000: the first page ends early, with a cursor behind what it saw.
    let first = ring.get("/v1/events?types=rare.**").await.expect(200);
    let page = first.json();
    assert_eq!(list(&page).len(), 5, "{page}");
    let next = string(&page["next_cursor"]);
    assert!(
        first.header("link").contains(&format!("after={next}>; rel=\"next\"")),
        "{}",
        first.header("link")
    );
    let page = ring.get(&format!("/v1/events?types=rare.**,none&after={next}")).await.expect(200).json();
    assert_eq!(list(&page).len(), 1);
    for (types, count) in [("rare.*", 0), ("none,also.none", 0), ("rare.*.deep", 5), ("*.one.**", 5)] {
        let page = ring.get(&format!("/v1/events?types={types}")).await.expect(200).json();
        assert_eq!(list(&page).len(), count, "{types}");
        assert_eq!(string(&page["next_cursor"]), next, "{types}");
    }
    // With time left it looks on at once.
    let began = Instant::now();
    let page = ring.get(&format!("/v1/events?types=none&wait_s=0.3&after={next}")).await.expect(200).json();
    assert!(list(&page).is_empty() && began.elapsed() >= Duration::from_millis(300));
    assert_eq!(string(&page["next_cursor"]), now(&ring).await);
}

#[tokio::test]
async fn now_is_behind_all_that_was_accepted() {
    let ring = Ringback::start().await;
    for n in 0..20 {
        ring.publish("a", json!(n)).await;
        let after = now(&ring).await;
        let id = ring.publish("b", json!(n)).await;
        let (seen, _) = follow(&ring, "limit=9", after, 1).await;
        assert_eq!(seen.iter().map(|event| string(&event["id"])).collect::<Vec<_>>(), [id]);
    }
}

#[tokio::test]
async fn a_long_poll_wakes_at_once() {
    let ring = Ringback::start().await;
    let mut quickest = PATIENCE;
    for n in 0..6 {
        let path = format!("/v1/events?types=wake.*&wait_s=30&after={}", now(&ring).await);
        let waiting = async { (ring.get(&path).await.expect(200).json(), Instant::now()) };
        let publishing = async {
            tokio::time::sleep(Duration::from_millis(120)).await;
            ring.publish("wake.up", json!(n)).await;
            Instant::now()
        };
        let ((page, woken), published) = tokio::join!(waiting, publishing);
        assert_eq!(list(&page)[0]["data"], n);
        quickest = quickest.min(woken.saturating_duration_since(published));
    }
    assert!(quickest < Duration::from_millis(150), "{quickest:?}");
}

#[tokio::test]
async fn large_events_do_not_make_large_pages() {
    let ring = Ringback::start().await;
    let large = "x".repeat(250 * 1024);
    for n in 0..20 {
        ring.publish("large", json!({ "n": n, "text": large })).await;
    }
    let first = ring.get(&format!("/v1/events?after={}", "AAAAAAAAAAA")).await.expect(200);
    assert!(first.body.len() < 5 * 1024 * 1024, "{}", first.body.len());
    let (seen, _) = follow(&ring, "", "AAAAAAAAAAA".to_owned(), 20).await;
    assert!(seen.iter().enumerate().all(|(n, event)| event["data"]["n"] == n));
}

#[tokio::test]
async fn what_makes_no_sense_is_422() {
    let ring = Ringback::start().await;
    for (query, pointer) in [
        ("after=x", "/after"),
        ("after=__________8", "/after"),
        ("types=", "/types"),
        ("types=a..b", "/types"),
        ("types=a,*b", "/types"),
        ("limit=251", "/limit"),
        ("wait_s=61", "/wait_s"),
        ("cursor=AAAAAAAAAAA", "/cursor"),
    ] {
        let answer = ring.get(&format!("/v1/events?{query}")).await.expect(422);
        assert_eq!(answer.pointers(), [pointer], "{query}");
    }
}

#[tokio::test]
async fn another_tenants_events_are_not_there() {
    let ring = Ringback::start().await;
    let mut sql = ring.sql().await;
    let key = format!("rbk_{}", "b".repeat(40));
    let tenant = "INSERT INTO ringback.tenants (id, name) VALUES (ringback.uuid_v7(), 'other')";
    sql.execute(tenant).await.expect("a tenant");
    let key_row = format!(
        "INSERT INTO ringback.api_keys (tenant_id, id, name, key_hash, scopes)
         SELECT id, ringback.uuid_v7(), 'k', sha256('{key}'::bytea), '{{events:read,events:write}}' FROM ringback.tenants WHERE name = 'other'"
    );
    sql.execute(AssertSqlSafe(key_row)).await.expect("a key");
    let other = ring.with_key(&key);
    let id = ring.publish("a", json!({ "of": "first" })).await;
    let status = async || other.get("/v1/events").await.status;
    crate::harness::eventually("the key is known", status, |status| *status == 200).await;
    let own = "SELECT ringback.publish('a', '{\"of\":\"other\"}', tenant => (SELECT ringback.typeid('ten', id) FROM ringback.tenants WHERE name = 'other'))";
    sql.execute(own).await.expect("published");

    let page = other.get("/v1/events?wait_s=20").await.expect(200).json();
    assert_eq!(list(&page).iter().map(|event| event["data"]["of"].clone()).collect::<Vec<_>>(), ["other"]);
    other.get(&format!("/v1/events/{id}")).await.expect(404);
    other.get("/v1/jobs").await.expect(403);
}
