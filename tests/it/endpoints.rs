//! Endpoints over HTTP: create, show, change, delete, secrets, tests, previews, stats.

use http::Method;
use ringback::signing::SigningKey;
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use crate::harness::client::{list, string};
use crate::harness::{Answer, Receiver, Reply, Ringback, eventually};

const HOOK: &str = "http://127.0.0.1:19999/hook";

async fn created(ring: &Ringback, endpoint: Value) -> Value {
    ring.post("/v1/endpoints", endpoint).await.expect(201).json()
}

fn path(endpoint: &Value) -> String {
    format!("/v1/endpoints/{}", string(&endpoint["id"]))
}

async fn patch(ring: &Ringback, path: &str, patch: Value) -> Answer {
    let call = ring.call(Method::PATCH, path).header("content-type", "application/merge-patch+json");
    call.body(patch.to_string()).send().await
}

async fn delete(ring: &Ringback, path: &str) -> Answer {
    ring.call(Method::DELETE, path).send().await
}

#[tokio::test]
async fn an_endpoint_is_created_shown_and_listed() {
    let ring = Ringback::start().await;
    let given = json!({ "url": HOOK, "event_types": ["order.*"], "filter": "data.amount > 100",
        "transform": "{'text': 'Paid ' + string(data.amount)}", "description": "billing", "headers": {"x-team": "billing"},
        "metadata": {"a": "b"}, "ordering": "key", "max_in_flight": 5, "rate_limit": {"per_s": 0.5}, "timeout_s": 2,
        "retry": {"max_attempts": 3} });

    let answer = ring.post("/v1/endpoints", given.clone()).await.expect(201);
    let made = answer.json();
    assert_eq!(answer.header("location"), path(&made));
    assert_eq!(answer.header("etag"), "\"1\"");
    assert!(string(&made["secret"]).starts_with("whsec_"));
    assert_eq!(made["rate_limit"], json!({"per_s": 0.5, "burst": 1}));
    assert_eq!(made["retry"]["initial_s"], 5.0);
    for name in
        ["url", "event_types", "filter", "transform", "description", "headers", "metadata", "ordering"]
    {
        assert_eq!(made[name], given[name], "{name}");
    }

    let shown = ring.get(&path(&made)).await.expect(200);
    assert_eq!(shown.header("etag"), "\"1\"");
    let mut without_secret = made.clone();
    without_secret.as_object_mut().expect("an object").remove("secret");
    assert_eq!(shown.json(), without_secret);
    let other = created(&ring, json!({ "url": HOOK, "status": "paused" })).await;
    let page = ring.get("/v1/endpoints?limit=1").await.expect(200).json();
    assert_eq!(list(&page)[0]["id"], other["id"], "the newest first");
    let next = ring.get(&format!("/v1/endpoints?limit=1&cursor={}", string(&page["next_cursor"]))).await;
    assert_eq!(list(&next.expect(200).json()), [without_secret]);
    let paused = list(&ring.get("/v1/endpoints?status=paused").await.expect(200).json());
    assert_eq!(paused.len(), 1);
}

#[tokio::test]
async fn faults_are_named_by_pointer() {
    let ring = Ringback::start().await;
    let answer = ring
        .post(
            "/v1/endpoints",
            json!({ "url": "http://10.0.0.1/", "event_types": ["a..b"], "filter": "data.amount >> 1", "colour": "red" }),
        )
        .await
        .expect(422);
    let mut pointers = answer.pointers();
    pointers.sort();
    assert_eq!(pointers, ["/colour", "/event_types/0", "/filter", "/url"]);
    assert!(answer.text().contains("column 14: "), "{}", answer.text());
    assert_eq!(ring.post("/v1/endpoints", json!({})).await.expect(422).pointers(), ["/url"]);
    let nested = json!({ "url": HOOK, "filter": "data.a.all(x, x.b.all(y, y > 1))" });
    assert_eq!(ring.post("/v1/endpoints", nested).await.expect(422).pointers(), ["/filter"]);
    let long = json!({ "url": HOOK, "transform": format!("'{}'", "x".repeat(4096)) });
    assert_eq!(ring.post("/v1/endpoints", long).await.expect(422).pointers(), ["/transform"]);
}

#[tokio::test]
async fn a_repeated_creation_gets_the_first_answer_with_its_secret() {
    let ring = Ringback::start().await;
    let post = async || {
        let call = ring.call(Method::POST, "/v1/endpoints").header("idempotency-key", "k");
        call.json(&json!({ "url": HOOK })).send().await.expect(201)
    };
    let (first, second) = (post().await, post().await);
    assert_eq!(second.header("idempotency-replayed"), "true");
    assert_eq!(second.body, first.body);
    assert_eq!(second.header("location"), first.header("location"));
    assert_eq!(list(&ring.get("/v1/endpoints").await.json()).len(), 1);
    // What lies in the database shows no secret.
    ring.put(
        "DO $$ BEGIN ASSERT (SELECT position('whsec_' IN encode(body, 'escape')) = 0 FROM ringback.idempotency_keys); END $$"
            .to_owned(),
    )
    .await;
}

#[tokio::test]
async fn a_merge_patch_changes_what_it_names() {
    let ring = Ringback::start().await;
    let made = created(
        &ring,
        json!({ "url": HOOK, "headers": {"x-a": "1", "x-b": "2"}, "max_in_flight": 5, "filter": "true" }),
    )
    .await;

    let answer = patch(
        &ring,
        &path(&made),
        json!({ "headers": {"x-a": null}, "max_in_flight": null, "description": "new" }),
    )
    .await
    .expect(200);
    let changed = answer.json();
    assert_eq!(answer.header("etag"), "\"2\"");
    assert_eq!(changed["headers"], json!({"x-b": "2"}));
    assert_eq!(
        (&changed["max_in_flight"], &changed["filter"], &changed["description"]),
        (&json!(32), &json!("true"), &json!("new"))
    );
    assert_eq!(ring.get(&path(&made)).await.json(), changed);

    let plain =
        ring.call(Method::PATCH, &path(&made)).json(&json!({ "status": "paused" })).send().await.expect(200);
    assert_eq!(plain.json()["status"], "paused");
    assert_eq!(
        patch(&ring, &path(&made), json!({ "id": "x", "filter": "1 +" })).await.expect(422).pointers().len(),
        2
    );
    let text =
        ring.call(Method::PATCH, &path(&made)).header("content-type", "text/plain").body("{}").send().await;
    text.expect(415);
    assert_eq!(ring.get(&path(&made)).await.header("etag"), "\"3\"", "refused patches change nothing");
}

#[tokio::test]
async fn if_match_protects_from_overwriting() {
    let ring = Ringback::start().await;
    let made = created(&ring, json!({ "url": HOOK })).await;
    let send = async |method: Method, tag: &str| {
        let call = ring.call(method, &path(&made)).header("if-match", tag);
        call.json(&json!({ "description": tag })).send().await
    };
    send(Method::PATCH, "\"1\"").await.expect(200);
    for stale in ["\"1\"", "W/\"2\"", "\"9\", \"8\"", "2"] {
        let answer = send(Method::PATCH, stale).await.expect(412);
        assert_eq!(answer.json()["code"], "precondition-failed");
    }
    let wrong = ring.call(Method::PATCH, &path(&made)).header("if-match", "\"1\"");
    wrong.json(&json!({ "description": 1 })).send().await.expect(422);
    send(Method::DELETE, "\"1\"").await.expect(412);
    send(Method::PATCH, "\"1\", \"2\"").await.expect(200);
    send(Method::PATCH, "*").await.expect(200);
    send(Method::DELETE, "\"4\"").await.expect(204);
}

#[tokio::test]
async fn a_deleted_endpoint_is_gone() {
    let ring = Ringback::start().await;
    let made = created(&ring, json!({ "url": HOOK })).await;
    delete(&ring, &path(&made)).await.expect(204);
    delete(&ring, &path(&made)).await.expect(404);
    for gone in ["", "/secret", "/stats"] {
        ring.get(&format!("{}{gone}", path(&made))).await.expect(404);
    }
    ring.act(&format!("{}/test", path(&made))).await.expect(404);
    patch(&ring, &path(&made), json!({})).await.expect(404);
    assert!(list(&ring.get("/v1/endpoints").await.json()).is_empty());
    ring.get("/v1/endpoints/ep_nonsense").await.expect(404);
}

#[tokio::test]
async fn a_secret_is_shown_and_rotated_with_an_overlap() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let made = created(&ring, json!({ "url": receiver.url("/hook") })).await;
    let secret = |answer: &Answer| string(&answer.json()["secret"]);

    let shown = ring.get(&format!("{}/secret", path(&made))).await.expect(200);
    assert_eq!(shown.json(), json!({ "secret": made["secret"], "previous": [] }));
    let rotate = format!("{}/secret/rotate", path(&made));
    let rotated = ring.post(&rotate, json!({ "overlap_s": 3600 })).await.expect(200);
    assert_ne!(secret(&rotated), string(&made["secret"]));
    assert_eq!(rotated.json()["previous"][0]["secret"], made["secret"]);
    ring.act(&format!("{}/test", path(&made))).await.expect(200);
    let told = receiver.nth(1).await;
    assert_eq!(told.header("webhook-signature").split(' ').count(), 2, "both sign");
    for secret in [secret(&rotated), string(&made["secret"])] {
        assert!(Webhook::new(&secret).expect("a secret").verify(&told.body, &told.headers).is_ok());
    }
    for _ in 0..4 {
        ring.act(&rotate).await.expect(200);
    }
    let last = ring.get(&format!("{}/secret", path(&made))).await.json();
    assert_eq!(last["previous"].as_array().map(Vec::len), Some(2), "at most three sign");
    ring.post(&rotate, json!({ "overlap_s": -1 })).await.expect(422);
}

#[tokio::test]
async fn an_ed25519_endpoint_shows_its_public_key() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let made = created(&ring, json!({ "url": receiver.url("/"), "signature": "ed25519" })).await;
    let key: SigningKey = string(&made["secret"]).parse().expect("a key");
    assert_eq!(key.public_key(), Some(string(&made["public_key"])));
    assert_eq!(ring.get(&format!("{}/secret", path(&made))).await.json()["public_key"], made["public_key"]);

    ring.act(&format!("{}/test", path(&made))).await.expect(200);
    let told = receiver.nth(1).await;
    let at = told.header("webhook-timestamp").parse().expect("seconds");
    let expected = ringback::signing::sign(&[key], told.header("webhook-id"), at, &told.body);
    assert_eq!(told.header("webhook-signature"), expected);
    assert!(expected.starts_with("v1a,"));

    // Another kind needs another secret; the former one signs along.
    let changed = patch(&ring, &path(&made), json!({ "signature": "hmac-sha256" })).await.expect(200).json();
    assert_eq!(changed["signature"], "hmac-sha256");
    let secrets = ring.get(&format!("{}/secret", path(&made))).await.json();
    assert!(
        string(&secrets["secret"]).starts_with("whsec_") && secrets.get("public_key").is_none(),
        "{secrets}"
    );
    assert_eq!(secrets["previous"][0]["secret"], made["secret"]);
}

#[tokio::test]
async fn a_test_sends_one_signed_event_and_can_be_seen() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(201).with_body("thanks"), Reply::from(500)]);
    let made = created(
        &ring,
        json!({ "url": receiver.url("/hook"), "headers": {"x-team": "billing"}, "event_types": ["order.*"], "filter": "false", "status": "paused" }),
    )
    .await;

    let good = ring.act(&format!("{}/test", path(&made))).await.expect(200).json();
    assert_eq!(
        (&good["status"], &good["status_code"], &good["error"]),
        (&json!("succeeded"), &json!(201), &Value::Null)
    );
    assert_eq!(good["response"]["body"], "thanks");
    let told = receiver.nth(1).await;
    assert_eq!(told.header("x-team"), "billing");
    assert_eq!(told.json()["type"], "ringback.test");
    assert_eq!(told.json()["data"]["endpoint_id"], made["id"]);
    assert_eq!(told.header("ringback-delivery"), string(&good["delivery_id"]));
    assert!(
        Webhook::new(&string(&made["secret"])).expect("a secret").verify(&told.body, &told.headers).is_ok()
    );

    let bad = ring.act(&format!("{}/test", path(&made))).await.expect(200).json();
    assert_eq!((&bad["status"], &bad["error"]["code"]), (&json!("failed"), &json!("status")));

    let found = ring.deliveries(&format!("endpoint_id={}", string(&made["id"]))).await;
    assert_eq!(found.iter().map(|one| string(&one["status"])).collect::<Vec<_>>(), ["failed", "succeeded"]);
    let seen = ring.delivery(&string(&good["delivery_id"])).await;
    assert_eq!(
        (&seen["endpoint_id"], &seen["url"], &seen["event_type"]),
        (&made["id"], &made["url"], &json!("ringback.test"))
    );
    assert_eq!(seen["attempts"][0]["response"]["body"], "thanks");
    assert_eq!(seen["event_id"], told.header("webhook-id"));
}

#[tokio::test]
async fn a_test_of_an_unreachable_receiver_says_why() {
    let ring = Ringback::start().await;
    let gone = Receiver::ok().url("/");
    let made = created(&ring, json!({ "url": gone })).await;
    let answer = ring.act(&format!("{}/test", path(&made))).await.expect(200).json();
    assert_eq!((&answer["status"], &answer["error"]["code"]), (&json!("failed"), &json!("connect")));
    assert_eq!(answer["response"], Value::Null);
}

#[tokio::test]
async fn a_preview_holds_expressions_against_an_event() {
    let ring = Ringback::start().await;
    let preview = async |body: Value| {
        let answer = ring.post("/v1/endpoints/preview", body).await.expect(200).json();
        list(&answer).remove(0)
    };
    let event = json!({ "type": "order.paid", "data": {"amount": 120} });
    let seen = preview(json!({ "event_types": ["order.*"], "filter": "data.amount > 100", "transform": "{'n': data.amount + 1}", "event": event })).await;
    assert_eq!(
        (&seen["matched"], &seen["body"]["data"], &seen["body"]["type"]),
        (&json!(true), &json!({"n": 121}), &json!("order.paid"))
    );
    for (what, matched, reason) in [
        (json!({ "event_types": ["job.*"], "event": event }), false, "none of event_types"),
        (json!({ "filter": "data.amount > 1000", "event": event }), false, "the filter is false"),
        (json!({ "filter": "data.total > 1", "event": event }), false, "there is no field 'total'"),
        (json!({ "transform": "data.total", "event": event }), true, "there is no field 'total'"),
        (json!({ "event": event }), true, "would be sent"),
    ] {
        let seen = preview(what.clone()).await;
        assert_eq!(seen["matched"], matched, "{what}");
        assert!(string(&seen["reason"]).contains(reason), "{what}: {seen}");
    }
    for (wrong, pointer) in [
        (json!({ "filter": "nonsense", "event": event }), "/filter"),
        (json!({ "event": {} }), "/event/type"),
        (json!({ "event": {"type": "a..b"} }), "/event/type"),
        (json!({ "last": 101 }), "/last"),
        (json!({ "last": 1, "event": event }), "/last"),
        (json!({ "url": HOOK }), "/url"),
    ] {
        assert_eq!(
            ring.post("/v1/endpoints/preview", wrong.clone()).await.expect(422).pointers(),
            [pointer],
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn a_preview_looks_at_the_latest_events() {
    let ring = Ringback::start().await;
    let target = Receiver::ok();
    for _ in 0..3 {
        let job = ring.submit(json!({ "kind": "http", "input": {"url": target.url("/")} })).await;
        ring.wait_for_end(&job).await;
    }
    let ask = json!({ "event_types": ["job.*"], "transform": "data.id", "last": 2 });
    let look = async || list(&ring.post("/v1/endpoints/preview", ask.clone()).await.expect(200).json());
    let seen = eventually("two events", look, |seen| seen.len() == 2).await;
    for one in seen {
        assert_eq!(one["matched"], true);
        assert!(string(&one["body"]["data"]).starts_with("job_"), "{one}");
    }
    assert!(target.received().len() == 3, "nothing was sent");
}

/// Deliveries that wait for an endpoint, due in an hour.
async fn wait_for(ring: &Ringback, endpoint: &Value, count: usize) {
    let endpoint = string(&endpoint["id"]).parse::<ringback::ids::EndpointId>().expect("an id").uuid();
    ring.put(format!(
        "WITH made AS (
           INSERT INTO ringback.deliveries (tenant_id, id, event_id, event_type, endpoint_id)
           SELECT t.id, overlay(gen_random_uuid()::text PLACING left(ringback.uuid_floor(now())::text, 13) FROM 1 FOR 13)::uuid, gen_random_uuid(), 'order.paid', '{endpoint}'
           FROM ringback.tenants t CROSS JOIN generate_series(1, {count}) RETURNING *
         )
         INSERT INTO ringback.delivery_queue (tenant_id, delivery_id, lane, target_id, event_id, endpoint_id, due_at, attempt)
         SELECT tenant_id, id, 0, '{endpoint}', event_id, '{endpoint}', now() + interval '1 hour', 2 FROM made"
    ))
    .await;
}

#[tokio::test]
async fn what_waits_ends_when_its_endpoint_is_disabled_or_deleted() {
    let ring = Ringback::start().await;
    for (code, count) in [("endpoint_disabled", 3), ("endpoint_deleted", 2500)] {
        let made = created(&ring, json!({ "url": HOOK })).await;
        let other = created(&ring, json!({ "url": HOOK })).await;
        wait_for(&ring, &made, count).await;
        wait_for(&ring, &other, 1).await;

        if code == "endpoint_disabled" {
            patch(&ring, &path(&made), json!({ "status": "disabled" })).await.expect(200);
        } else {
            delete(&ring, &path(&made)).await.expect(204);
        }

        let pending = format!("status=pending&endpoint_id={}", string(&made["id"]));
        eventually("all ended", async || ring.deliveries(&pending).await, Vec::is_empty).await;
        let failed =
            ring.deliveries(&format!("status=failed&limit=250&endpoint_id={}", string(&made["id"]))).await;
        assert_eq!(failed.len(), count.min(250));
        assert!(
            failed.iter().all(|one| one["error"]["code"] == code && one["attempt"] == 3),
            "{:?}",
            failed[0]
        );
        let others = ring.deliveries(&format!("endpoint_id={}", string(&other["id"]))).await;
        assert_eq!(others[0]["status"], "pending");
    }
}

#[tokio::test]
async fn a_paused_endpoint_keeps_what_waits() {
    let ring = Ringback::start().await;
    let made = created(&ring, json!({ "url": HOOK })).await;
    wait_for(&ring, &made, 1).await;
    patch(&ring, &path(&made), json!({ "status": "paused" })).await.expect(200);
    assert_eq!(ring.deliveries("status=pending").await.len(), 1);
}

#[tokio::test]
async fn stats_tell_rates_latency_backlog_and_health() {
    let ring = Ringback::start().await;
    let made = created(&ring, json!({ "url": HOOK })).await;
    let stats = format!("{}/stats", path(&made));
    let fresh = ring.get(&stats).await.expect(200).json();
    assert_eq!(
        (&fresh["success_rate"], &fresh["backlog"], &fresh["latency_ms"]["p50"]),
        (&Value::Null, &json!(0), &Value::Null)
    );

    wait_for(&ring, &made, 7).await;
    let id = string(&made["id"]).parse::<ringback::ids::EndpointId>().expect("an id").uuid();
    ring.put(format!(
        "INSERT INTO ringback.endpoint_minutes SELECT id, '{id}', now() - m * interval '1 minute', 3, 1, '{{0,0,3,1}}' FROM ringback.tenants, generate_series(1, 2) m;
         INSERT INTO ringback.endpoint_minutes SELECT id, '{id}', now() - interval '30 hours', 100, 0, '{{100}}' FROM ringback.tenants;
         INSERT INTO ringback.endpoint_health SELECT id, '{id}', now() - interval '1 minute', now() + interval '1 minute', 4 FROM ringback.tenants"
    ))
    .await;
    let day = ring.get(&stats).await.expect(200).json();
    assert_eq!(
        (&day["succeeded"], &day["failed"], &day["success_rate"]),
        (&json!(6), &json!(2), &json!(0.75))
    );
    assert_eq!(day["latency_ms"], json!({"p50": 4, "p95": 8, "p99": 8}));
    assert_eq!((&day["backlog"], &day["backlog_is_minimum"]), (&json!(7), &json!(false)));
    assert_eq!(day["breaker"]["status"], "open");
    assert!(!day["failing_since"].is_null() && !day["oldest_due_at"].is_null());
    assert_eq!(ring.get(&format!("{stats}?hours=48")).await.json()["succeeded"], 106);
    for wrong in ["0", "721", "x"] {
        ring.get(&format!("{stats}?hours={wrong}")).await.expect(422);
    }
}
