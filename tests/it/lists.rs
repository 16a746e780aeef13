//! Lists: pages, cursors, filters.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use crate::harness::client::{get_job, list, string};
use crate::harness::{Receiver, Ringback};

/// Accepts so many jobs, the n-th with metadata `n` and parity; their ids in the order of acceptance.
async fn jobs(ring: &Ringback, count: usize) -> Vec<String> {
    let job = |n: usize| {
        let queue = if n.is_multiple_of(2) { "even" } else { "odd" };
        json!({ "kind": if n < 3 { "small" } else { "large" }, "queue": queue, "metadata": {"n": n.to_string(), "queue": queue} })
    };
    let batch: Vec<Value> = (0..count).map(job).collect();
    let page = ring.post("/v1/jobs/batch", json!({ "jobs": batch })).await.expect(202).json();
    ids(&page)
}

fn ids(page: &Value) -> Vec<String> {
    list(page).iter().map(|object| string(&object["id"])).collect()
}

#[tokio::test]
async fn a_walk_by_cursors_sees_each_job_once_newest_first() {
    let ring = Ringback::start().await;
    let mut expected = jobs(&ring, 25).await;
    expected.reverse();

    let (mut seen, mut path, mut pages) = (Vec::new(), "/v1/jobs?limit=10&kind=large".to_owned(), 0);
    loop {
        let answer = ring.get(&path).await.expect(200);
        let page = answer.json();
        seen.extend(ids(&page));
        pages += 1;
        let Some(cursor) = page["next_cursor"].as_str() else {
            assert_eq!((answer.header("link"), &page["next_cursor"]), ("", &Value::Null));
            break;
        };
        // What comes in meanwhile is newer than the walk, and not in it.
        ring.submit(json!({ "kind": "large" })).await;
        let link = answer.header("link");
        let next = link.strip_prefix('<').and_then(|rest| rest.strip_suffix(">; rel=\"next\"")).expect(link);
        assert!(next.contains(cursor) && next.contains("limit=10") && next.contains("kind=large"), "{link}");
        path = next.to_owned();
    }

    assert_eq!((seen, pages), (expected[..22].to_vec(), 3));
}

#[tokio::test]
async fn a_page_has_50_objects_unless_asked_otherwise() {
    let ring = Ringback::start().await;
    jobs(&ring, 251).await;
    for (query, count, more) in [("", 50, true), ("?limit=1", 1, true), ("?limit=250", 250, true)] {
        let page = ring.get(&format!("/v1/jobs{query}")).await.expect(200).json();
        assert_eq!((ids(&page).len(), page["next_cursor"].is_string()), (count, more), "{query}");
    }
}

#[tokio::test]
async fn jobs_are_found_by_kind_queue_and_metadata() {
    let ring = Ringback::start().await;
    let all = jobs(&ring, 6).await;
    let cases: [(&str, &[usize]); 7] = [
        ("kind=small", &[2, 1, 0]),
        ("queue=odd", &[5, 3, 1]),
        ("kind=small&queue=odd", &[1]),
        ("metadata[n]=4", &[4]),
        ("metadata%5Bqueue%5D=even&kind=large", &[4]),
        ("metadata[queue]=even&metadata[n]=3", &[]),
        ("kind=none", &[]),
    ];
    for (query, places) in cases {
        let page = ring.get(&format!("/v1/jobs?{query}")).await.expect(200).json();
        let expected: Vec<String> = places.iter().map(|place| all[*place].clone()).collect();
        assert_eq!(ids(&page), expected, "{query}");
    }
}

#[tokio::test]
async fn jobs_are_found_by_status() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([200, 404]);
    let queued = ring.submit(json!({ "kind": "resize" })).await;
    let delayed = ring.submit(json!({ "kind": "resize", "delay_s": 600 })).await;
    let succeeded = ring.submit(get_job(&receiver.url("/"))).await;
    ring.wait_for_end(&succeeded).await;
    let failed = ring.submit(get_job(&receiver.url("/"))).await;
    ring.wait_for_end(&failed).await;
    let cancelled = ring.submit(json!({ "kind": "resize" })).await;
    ring.act(&format!("/v1/jobs/{cancelled}/cancel")).await.expect(200);

    let cases = [
        ("queued", vec![delayed, queued]),
        ("succeeded", vec![succeeded]),
        ("failed", vec![failed]),
        ("cancelled", vec![cancelled]),
        ("running", vec![]),
        ("retrying", vec![]),
    ];
    for (status, expected) in cases {
        let page = ring.get(&format!("/v1/jobs?status={status}")).await.expect(200).json();
        assert_eq!(ids(&page), expected, "{status}");
        assert!(list(&page).iter().all(|job| job["status"] == status));
    }
}

#[tokio::test]
async fn deliveries_are_found_by_what_they_deliver_and_how_they_stand() {
    let ring = Ringback::start().await;
    let (target, callback) = (Receiver::answering([200, 404]), Receiver::answering([200, 410]));
    let mut job = get_job(&target.url("/"));
    job["callback_url"] = json!(callback.url("/"));
    let first = ring.submit(job.clone()).await;
    let delivered = ring.wait_for_delivery(&first, "succeeded").await;
    let second = ring.submit(job).await;
    let gone = ring.wait_for_delivery(&second, "failed").await;

    let (delivered, gone) = (&delivered, &gone);
    let event = string(&gone["event_id"]);
    let cases = [
        (String::new(), vec![gone, delivered]),
        ("status=succeeded".to_owned(), vec![delivered]),
        ("status=failed".to_owned(), vec![gone]),
        ("status=pending".to_owned(), vec![]),
        ("event_type=job.failed".to_owned(), vec![gone]),
        (format!("event_id={event}"), vec![gone]),
        (format!("job_id={first}"), vec![delivered]),
        (format!("since={}", string(&gone["created_at"])), vec![gone]),
        (format!("until={}", string(&gone["created_at"])), vec![delivered]),
        ("endpoint_id=ep_01h455vb4pex5vsknk084sn02q".to_owned(), vec![]),
        ("limit=1".to_owned(), vec![gone]),
    ];
    for (query, expected) in cases {
        let found: Vec<String> = ring.deliveries(&query).await.iter().map(|one| string(&one["id"])).collect();
        let expected: Vec<String> = expected.iter().map(|one| string(&one["id"])).collect();
        assert_eq!(found, expected, "{query}");
    }
}

#[tokio::test]
async fn a_walk_over_deliveries_sees_each_once() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let job = json!({ "kind": "http", "input": {"url": receiver.url("/work")}, "callback_url": receiver.url("/told") });
    let jobs = ids(&ring.post("/v1/jobs/batch", json!({ "jobs": vec![job; 7] })).await.expect(202).json());
    for job in &jobs {
        ring.wait_for_delivery(job, "succeeded").await;
    }

    let first = ring.get("/v1/deliveries?limit=5").await.expect(200).json();
    let second =
        ring.get(&format!("/v1/deliveries?limit=5&cursor={}", string(&first["next_cursor"]))).await.json();

    let seen: BTreeSet<String> = ids(&first).into_iter().chain(ids(&second)).collect();
    assert_eq!((ids(&first).len(), ids(&second).len(), seen.len()), (5, 2, 7));
    assert_eq!(second["next_cursor"], Value::Null);
}

#[tokio::test]
async fn a_query_that_makes_no_sense_is_422_and_names_the_parameter() {
    let ring = Ringback::start().await;
    for list in ["/v1/jobs", "/v1/deliveries"] {
        for (query, pointer) in [
            ("limit=0", "/limit"),
            ("limit=251", "/limit"),
            ("limit=-1", "/limit"),
            ("limit=ten", "/limit"),
            ("limit=", "/limit"),
            ("cursor=nonsense", "/cursor"),
            ("cursor=", "/cursor"),
            ("status=done", "/status"),
            ("colour=red", "/colour"),
            ("limit=1&limit=2", "/limit"),
        ] {
            let answer = ring.get(&format!("{list}?{query}")).await;
            assert_eq!(answer.status, 422, "{list}?{query}: {}", answer.text());
            assert_eq!(answer.pointers(), [pointer], "{list}?{query}");
        }
    }
    for query in ["event_id=job_01h455vb4pex5vsknk084sn02q", "since=yesterday"] {
        ring.get(&format!("/v1/deliveries?{query}")).await.expect(422);
    }
}

#[tokio::test]
async fn head_is_a_get_without_a_body() {
    let ring = Ringback::start().await;
    let id = ring.submit(json!({ "kind": "resize" })).await;
    for path in ["/v1/jobs".to_owned(), format!("/v1/jobs/{id}"), "/v1/deliveries".to_owned()] {
        let head = ring.call(Method::HEAD, &path).send().await.expect(200);
        assert_eq!((head.body.len(), head.header("content-type")), (0, "application/json"), "{path}");
    }
}

#[tokio::test]
async fn a_text_that_no_object_can_have_finds_nothing_or_is_refused() {
    let ring = Ringback::start().await;
    ring.submit(json!({ "kind": "resize" })).await;
    for query in ["kind=%00", "queue=a%00b", "metadata[a]=%00", "metadata[%00]=a", "kind=%FF", "metadata[]=x"]
    {
        let answer = ring.get(&format!("/v1/jobs?{query}")).await;
        assert!(matches!(answer.status, 200 | 422), "{query}: {}", answer.text());
        assert!(answer.status == 422 || list(&answer.json()).is_empty(), "{query}: {}", answer.text());
    }
    for query in [
        "event_type=%00",
        "since=0001-01-01T00:00:00Z",
        "until=9999-12-31T23:59:59Z",
        "until=1969-01-01T00:00:00Z",
    ] {
        let answer = ring.get(&format!("/v1/deliveries?{query}")).await;
        assert!(matches!(answer.status, 200 | 422), "{query}: {}", answer.text());
    }
    let answer = ring.get("/v1/jobs?metadata=a").await.expect(422);
    assert!(!answer.text().contains("twice"), "{}", answer.text());
}
