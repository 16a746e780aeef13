//! The built-in kinds that the operator's file opens: programs, data sources, mail; and what a request cannot do with them.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::harness::client::{list, quick, string};
use crate::harness::process::ServeProcess;
use crate::harness::service::database;
use crate::harness::smtp::MailServer;
use crate::harness::{Ringback, eventually};

async fn with_file(file: &str) -> Ringback {
    let operator = toml::from_str(file).expect("an operator's file");
    Ringback::with(|config| config.operator = Arc::new(operator)).await
}

fn job(kind: &str, input: Value) -> Value {
    let mut backoff = quick(2);
    backoff.as_object_mut().expect("an object").remove("max_attempts");
    json!({ "kind": kind, "input": input, "max_attempts": 2, "backoff": backoff })
}

async fn end_of(ring: &Ringback, kind: &str, input: Value) -> Value {
    ring.wait_for_end(&ring.submit(job(kind, input)).await).await
}

const PROGRAMS: &str = r#"
[commands.cat]
program = "/bin/cat"
[commands.env]
program = "/usr/bin/env"
env = { LANG = "C.UTF-8" }
[commands.echo]
program = "/bin/echo"
args = ["-n", "{what}", "and", "{more}"]
[commands.shell]
program = "/bin/sh"
args = ["-c", "echo out; echo err >&2; exit \"$1\"", "sh", "{code}"]
[commands.much]
program = "/bin/sh"
args = ["-c", "head -c 100000 /dev/zero | tr '\\0' x"]
[commands.bytes]
program = "/bin/sh"
args = ["-c", "printf '\\377\\000'"]
[commands.slow]
program = "/bin/sh"
args = ["-c", "sleep 600 & echo $! > \"$1\"; wait", "sh", "{pids}"]
[commands.leaver]
program = "/bin/sh"
args = ["-c", "sleep 600 & echo left"]
[commands.brief]
program = "/bin/sleep"
args = ["600"]
timeout_s = 0.2
[commands.where]
program = "/bin/pwd"
[commands.missing]
program = "/no/such/program"
"#;

#[tokio::test]
async fn a_program_gets_stdin_and_arguments_and_nothing_that_it_should_not() {
    let ring = with_file(PROGRAMS).await;
    let text = end_of(&ring, "command", json!({ "name": "cat", "stdin": "ä\n" })).await;
    assert_eq!((&text["status"], &text["result"]["stdout"]), (&json!("succeeded"), &json!("ä\n")), "{text}");
    assert_eq!(text["result"]["exit_code"], 0);
    let bytes = end_of(&ring, "command", json!({ "name": "cat", "stdin_base64": "/wA=" })).await;
    assert_eq!(
        (&bytes["result"]["stdout"], &bytes["result"]["stdout_base64"]),
        (&Value::Null, &json!("/wA="))
    );
    let env = end_of(&ring, "command", json!({ "name": "env" })).await;
    assert_eq!(env["result"]["stdout"], "LANG=C.UTF-8\n", "nothing else is inherited");
    let args = json!({ "name": "echo", "args": {"what": "$(id); `id` | x", "more": 7} });
    assert_eq!(end_of(&ring, "command", args).await["result"]["stdout"], "$(id); `id` | x and 7", "no shell");
    let place = string(&end_of(&ring, "command", json!({ "name": "where" })).await["result"]["stdout"]);
    assert!(!std::path::Path::new(place.trim()).exists(), "its folder goes with it: {place}");
}

#[tokio::test]
async fn exit_codes_tell_whether_another_try_is_of_use() {
    let ring = with_file(PROGRAMS).await;
    for (code, attempts) in [(1, 2), (65, 1)] {
        let job = end_of(&ring, "command", json!({ "name": "shell", "args": {"code": code} })).await;
        assert_eq!((&job["status"], &job["attempt"]), (&json!("failed"), &json!(attempts)), "{job}");
        assert_eq!(job["error"]["code"], "exit_code");
        assert!(string(&job["error"]["message"]).ends_with(&format!("exit code {code}: err")), "{job}");
    }
    let missing = end_of(&ring, "command", json!({ "name": "missing" })).await;
    assert!(string(&missing["error"]["message"]).contains("/no/such/program"), "{missing}");
}

#[tokio::test]
async fn output_is_cut_and_marked() {
    let ring = with_file(PROGRAMS).await;
    let much = end_of(&ring, "command", json!({ "name": "much" })).await;
    assert_eq!(string(&much["result"]["stdout"]).len(), 65_536);
    assert_eq!(much["result"]["stdout_truncated"], true);
    let bytes = end_of(&ring, "command", json!({ "name": "bytes" })).await;
    assert_eq!(bytes["result"]["stdout_base64"], "/wA=");
}

fn lives(pid: &str) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !state.is_empty() && !state.contains(") Z ")
}

async fn written(file: &std::path::Path) -> String {
    let read = async || std::fs::read_to_string(file).unwrap_or_default();
    eventually("the program says its child's id", read, |text| text.ends_with('\n')).await.trim().to_owned()
}

#[tokio::test]
async fn a_timeout_and_a_wish_to_cancel_kill_the_whole_group() {
    let ring = with_file(PROGRAMS).await;
    let folder = tempfile::tempdir().expect("a folder");
    let own = end_of(&ring, "command", json!({ "name": "brief" })).await;
    assert_eq!(own["error"]["code"], "timeout", "the operator's limit: {own}");
    for (at, how) in ["timeout", "cancel"].into_iter().enumerate() {
        let file = folder.path().join(format!("{at}"));
        let mut slow = job("command", json!({ "name": "slow", "args": {"pids": file} }));
        slow["max_attempts"] = json!(1);
        if how == "timeout" {
            slow["timeout_s"] = json!(1);
        }
        let id = ring.submit(slow).await;
        let pid = written(&file).await;
        if how == "cancel" {
            ring.act(&format!("/v1/jobs/{id}/cancel")).await.expect(200);
        }
        ring.wait_for_end(&id).await;
        eventually("the grandchild is gone", async || lives(&pid), |lives| !lives).await;
    }
    let left = end_of(&ring, "command", json!({ "name": "leaver" })).await;
    assert_eq!(left["result"]["stdout"], "left\n", "it does not wait for whom the program left behind");
}

#[tokio::test]
async fn a_killed_service_leaves_no_program_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("ringback.toml");
    std::fs::write(&config, PROGRAMS).expect("written");
    let database = database().await;
    let mut ring = ServeProcess::on(&database.url()).with("RINGBACK_CONFIG", config.to_str().expect("text"));
    ring.start().await;
    let file = folder.path().join("pid");
    ring.submit(job("command", json!({ "name": "slow", "args": {"pids": file} }))).await;
    let pid = written(&file).await;
    assert!(lives(&pid));

    ring.kill();

    eventually("the program is gone", async || lives(&pid), |lives| !lives).await;
}

#[tokio::test]
async fn what_the_file_does_not_name_is_refused_at_once() {
    let file =
        format!("{PROGRAMS}\n[sources.s]\nurl = \"postgres://h/d\"\nstatements = {{ a = \"SELECT 1\" }}");
    let ring = with_file(&file).await;
    let cases = [
        ("command", json!({ "name": "rm" }), "/input/name"),
        ("command", json!({ "name": "echo", "args": {"what": "x"} }), "/input/args/more"),
        ("command", json!({ "name": "echo", "args": {"what": "-rf", "more": ""} }), "/input/args/what"),
        ("command", json!({ "name": "cat", "stdin": "x", "shell": "x" }), "/input/shell"),
        ("sql", json!({ "source": "t", "statement": "a" }), "/input/source"),
        ("sql", json!({ "source": "s", "statement": "b" }), "/input/statement"),
        ("sql", json!({ "source": "s", "query": "SELECT 1" }), "/input/query"),
        ("email", json!({ "to": "a@example.com", "text": "x" }), "/input"),
    ];
    for (kind, input, pointer) in cases {
        let refused = ring.post("/v1/jobs", job(kind, input.clone())).await.expect(422);
        assert_eq!(refused.pointers(), [pointer], "{kind} {input}");
    }
    ring.post("/v1/jobs", json!({ "kind": "command" })).await.expect(422);
}

#[tokio::test]
async fn a_wrong_file_ends_the_start_with_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("ringback.toml");
    let database = database().await;
    for (text, told) in [
        ("[commands.a]\nprogram = \"/bin/cat\"\nshell = true", "shell"),
        ("[commands.a]\nprogram = \"cat\"", "[commands.a] program must be an absolute path"),
        ("[queues.mail]\nconcurrency = 0", "[queues.mail] concurrency"),
    ] {
        std::fs::write(&config, text).expect("written");
        let mut ring =
            ServeProcess::on(&database.url()).with("RINGBACK_CONFIG", config.to_str().expect("text"));
        let ended = ring.start_in_vain();
        assert_eq!(ended.code, Some(78));
        assert!(ended.stderr.contains(told), "{}", ended.stderr);
    }
}

/// A database beside the service's own, and a file that opens it.
async fn source(more: &str) -> (crate::harness::database::TestDatabase, Ringback) {
    let shop = database().await;
    let file = format!(
        r#"[sources.shop]
        url = "{}"
        {more}
        [sources.shop.statements]
        types = """SELECT 1::int2 AS small, 9007199254740993::int8 AS big, 1.10::numeric AS exact, 1.5::float8 AS float, 'x'::text AS text,
          true AS yes, NULL::int AS none, '2026-11-01'::date AS day, '2026-11-01T10:00:00Z'::timestamptz AS at,
          '00000000-0000-0000-0000-000000000001'::uuid AS id, '{{"b":1,"a":[2]}}'::jsonb AS doc, ARRAY[1,2] AS list, '\\x00ff'::bytea AS bytes,
          interval '90 s' AS span, 'NaN'::float8 AS nan"""
        params = "SELECT $1::date + $2::int AS day, $3::text[] AS list, $4::jsonb ->> 'a' AS a, $5::numeric AS n -- a comment"
        slow = "SELECT pg_sleep(30)"
        many = "SELECT n FROM generate_series(1, 1000) AS n"
        wide = "SELECT repeat('x', 50000) AS x FROM generate_series(1, 20)"
        wrong = "SELECT nothing FROM nowhere"
        write = "CREATE TEMP TABLE t AS SELECT 1"
        insert = "INSERT INTO public.notes (text) VALUES ($1) RETURNING text"
        delete = "DELETE FROM public.notes""#,
        shop.url()
    );
    let ring = with_file(&file).await;
    (shop, ring)
}

fn ask(statement: &str, params: Value) -> Value {
    json!({ "source": "shop", "statement": statement, "params": params })
}

#[tokio::test]
async fn every_common_type_comes_as_json_and_parameters_are_values() {
    let (_shop, ring) = source("").await;
    let job = end_of(&ring, "sql", ask("types", json!([]))).await;
    assert_eq!(job["status"], "succeeded", "{job}");
    assert_eq!(job["result"]["columns"].as_array().map(Vec::len), Some(15));
    assert_eq!(job["result"]["row_count"], 1);
    let row = &job["result"]["rows"][0];
    let wanted = json!([
        1, 9_007_199_254_740_993_i64, 1.1, 1.5, "x", true, null, "2026-11-01", "2026-11-01T10:00:00+00:00",
        "00000000-0000-0000-0000-000000000001", {"a": [2], "b": 1}, [1, 2], "\\x00ff", "00:01:30", "NaN"
    ]);
    assert_eq!(row, &wanted);

    let params = json!(["2026-11-01", 2, ["a", "b'\\\"", null], {"a": "'; DROP TABLE x; --"}, 12.5]);
    let job = end_of(&ring, "sql", ask("params", params)).await;
    assert_eq!(
        job["result"]["rows"][0],
        json!(["2026-11-03", ["a", "b'\\\"", null], "'; DROP TABLE x; --", 12.5]),
        "{job}"
    );

    let few = end_of(&ring, "sql", ask("params", json!([1]))).await;
    assert_eq!((&few["error"]["code"], &few["attempt"]), (&json!("invalid_input"), &json!(1)), "{few}");
    let wrong = end_of(&ring, "sql", ask("params", json!(["no day", 2, [], {}, 1]))).await;
    assert!(string(&wrong["error"]["message"]).contains("SQLSTATE 22007"), "{wrong}");
}

#[tokio::test]
async fn a_source_keeps_its_limits() {
    let (_shop, ring) = source("statement_timeout_s = 0.2\nmax_rows = 10").await;
    let slow = end_of(&ring, "sql", ask("slow", json!([]))).await;
    assert!(string(&slow["error"]["message"]).contains("SQLSTATE 57014"), "{slow}");
    assert_eq!(slow["attempt"], 2, "it may pass");
    let many = end_of(&ring, "sql", ask("many", json!([]))).await;
    assert_eq!((&many["result"]["row_count"], &many["result"]["truncated"]), (&json!(10), &json!(true)));
    let wide = end_of(&ring, "sql", ask("wide", json!([]))).await;
    assert_eq!((&wide["result"]["row_count"], &wide["result"]["truncated"]), (&json!(4), &json!(true)));
    let wrong = end_of(&ring, "sql", ask("wrong", json!([]))).await;
    assert_eq!((&wrong["error"]["code"], &wrong["attempt"]), (&json!("sql"), &json!(1)), "{wrong}");
}

#[tokio::test]
async fn a_source_is_read_only_unless_the_operator_says_otherwise() {
    let (shop, ring) = source("allow_query = true").await;
    let mut shop_sql = sqlx::ConnectOptions::connect(&shop.options()).await.expect("connects");
    sqlx::Executor::execute(&mut shop_sql, "CREATE TABLE public.notes (text text)").await.expect("made");
    for statement in ["insert", "delete"] {
        let params = if statement == "insert" { json!(["x"]) } else { json!([]) };
        let job = end_of(&ring, "sql", ask(statement, params)).await;
        assert!(string(&job["error"]["message"]).contains("SQLSTATE 25006"), "{job}");
    }
    for query in [
        "SELECT 1; INSERT INTO public.notes VALUES ('x')",
        "COMMIT",
        "SET TRANSACTION READ WRITE",
        "SELECT 1) SELECT 2; DELETE FROM public.notes; --",
    ] {
        let job = end_of(&ring, "sql", json!({ "source": "shop", "query": query })).await;
        assert_eq!(job["status"], "failed", "{query}: {job}");
    }
    let read =
        end_of(&ring, "sql", json!({ "source": "shop", "query": "SELECT count(*) AS n FROM public.notes" }))
            .await;
    assert_eq!(read["result"]["rows"], json!([[0]]), "{read}");
}

#[tokio::test]
async fn a_source_that_may_be_written_to_is_written_to() {
    let (shop, ring) = source("read_only = false").await;
    let mut shop_sql = sqlx::ConnectOptions::connect(&shop.options()).await.expect("connects");
    sqlx::Executor::execute(&mut shop_sql, "CREATE TABLE public.notes (text text)").await.expect("made");
    let inserted = end_of(&ring, "sql", ask("insert", json!(["ä"]))).await;
    assert_eq!(
        inserted["result"],
        json!({ "columns": ["text"], "rows": [["ä"]], "row_count": 1 }),
        "{inserted}"
    );
    let deleted = end_of(&ring, "sql", ask("delete", json!([]))).await;
    assert_eq!(deleted["result"], json!({ "columns": [], "rows": [], "row_count": 1 }), "{deleted}");
}

#[tokio::test]
async fn a_cancelled_job_stops_its_statement() {
    let (shop, ring) = source("").await;
    let id = ring.submit(job("sql", ask("slow", json!([])))).await;
    let mut own = sqlx::ConnectOptions::connect(&shop.options()).await.expect("connects");
    let mut sleeping = async || {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND application_name LIKE 'ringback sql%'";
        sqlx::query_scalar::<_, i64>(count).fetch_one(&mut own).await.expect("a count")
    };
    eventually("the statement runs", &mut sleeping, |count| *count == 1).await;
    ring.act(&format!("/v1/jobs/{id}/cancel")).await.expect(200);
    assert_eq!(ring.wait_for_end(&id).await["status"], "cancelled");
    eventually("the statement is gone", &mut sleeping, |count| *count == 0).await;
}

#[tokio::test]
async fn more_slow_jobs_than_connections_wait_without_losing_a_try() {
    let (_shop, ring) = source("connections = 1\nallow_query = true").await;
    let one = job("sql", json!({ "source": "shop", "query": "SELECT pg_sleep(0.3)" }));
    let accepted =
        list(&ring.post("/v1/jobs/batch", json!({ "jobs": vec![one; 5] })).await.expect(202).json());
    for job in accepted {
        let job = ring.wait_for_end(&string(&job["id"])).await;
        assert_eq!((&job["status"], &job["attempt"]), (&json!("succeeded"), &json!(1)), "{job}");
    }
}

#[tokio::test]
async fn the_service_s_own_database_is_no_source_with_its_own_rights() {
    let ring = Ringback::with(|config| {
        let ringback::config::Database::External(url) = &config.database else {
            panic!("tests name a database")
        };
        let file = format!(
            "[sources.own]\nurl = \"{}\"\nallow_query = true",
            url.expose().replace("postgres:", "postgresql:")
        );
        config.operator = Arc::new(toml::from_str(&file).expect("a file"));
    })
    .await;
    let job =
        end_of(&ring, "sql", json!({ "source": "own", "query": "SELECT * FROM ringback.signing_secrets" }))
            .await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("failed"), &json!(1)));
    assert!(string(&job["error"]["message"]).contains("own database"), "{job}");
}

async fn with_mail(answers: &[&'static str]) -> (MailServer, Ringback) {
    let server = MailServer::start(answers).await;
    let ring =
        with_file(&format!("[smtp]\nurl = \"{}\"\nfrom = \"Shop <no-reply@example.com>\"", server.url()))
            .await;
    (server, ring)
}

#[tokio::test]
async fn a_message_arrives_as_it_was_written() {
    let (server, ring) = with_mail(&[]).await;
    let input = json!({
        "to": ["Ada <ada@example.com>", "bob@example.com"], "cc": "carl@example.com", "bcc": "dora@example.com",
        "reply_to": "help@example.com", "subject": "Grüße", "text": ".dot\nTschüß", "html": "<p>Tschüß</p>"
    });
    let job = end_of(&ring, "email", input).await;
    assert_eq!(job["status"], "succeeded", "{job}");

    let mail = server.nth(1).await;
    assert_eq!(mail.from, "<no-reply@example.com>");
    assert_eq!(
        mail.to,
        ["<ada@example.com>", "<bob@example.com>", "<carl@example.com>", "<dora@example.com>"]
    );
    assert_eq!(mail.header("message-id"), string(&job["result"]["message_id"]));
    assert!(mail.header("message-id").contains(&string(&job["id"])), "the same on every try");
    assert_eq!(
        (mail.header("from").as_str(), mail.header("reply-to").as_str()),
        ("Shop <no-reply@example.com>", "help@example.com")
    );
    assert_eq!(mail.header("bcc"), "");
    assert!(mail.header("content-type").starts_with("multipart/alternative"), "{}", mail.text);
    assert!(mail.header("subject").starts_with("=?utf-8?"), "{}", mail.text);
}

#[tokio::test]
async fn what_may_pass_is_sent_again_and_what_will_not_is_not() {
    let (server, ring) = with_mail(&["451 come back", "550 nobody here"]).await;
    let message = json!({ "to": "ada@example.com", "subject": "x", "text": "x" });
    let failed = end_of(&ring, "email", message.clone()).await;
    assert_eq!((&failed["status"], &failed["attempt"]), (&json!("failed"), &json!(2)), "{failed}");
    assert!(string(&failed["error"]["message"]).contains("nobody here"), "{failed}");
    assert_eq!(end_of(&ring, "email", message).await["attempt"], 1);
    assert_eq!(server.mails().len(), 1);
}

#[tokio::test]
async fn no_field_begins_another_header() {
    let (server, ring) = with_mail(&[]).await;
    for (field, value) in [
        ("to", "a@example.com\r\nBcc: x@example.com"),
        ("subject", "x\nBcc: x@example.com"),
        ("reply_to", "a@b\n"),
        ("from", "a\r\n@b"),
    ] {
        let mut input = json!({ "to": "ada@example.com", "subject": "x", "text": "x" });
        input[field] = json!(value);
        let refused = ring.post("/v1/jobs", job("email", input)).await.expect(422);
        assert_eq!(refused.pointers(), [format!("/input/{field}")]);
    }
    assert_eq!(server.mails().len(), 0);
}

#[tokio::test]
async fn a_limited_queue_runs_no_more_at_a_time_and_no_faster_than_it_may() {
    let (server, ring) = {
        let server = MailServer::start(&[]).await;
        let file = format!(
            "[smtp]\nurl = \"{}\"\nfrom = \"a@example.com\"\n[queues.mail]\nconcurrency = 2\nrate_limit = {{ per_s = 20, burst = 5 }}",
            server.url()
        );
        (server, with_file(&file).await)
    };
    let mut one = job("email", json!({ "to": "ada@example.com", "subject": "x", "text": "x" }));
    one["queue"] = json!("mail");
    let accepted =
        list(&ring.post("/v1/jobs/batch", json!({ "jobs": vec![one; 25] })).await.expect(202).json());

    let mut times = Vec::new();
    for job in &accepted {
        let job = ring.wait_for_end(&string(&job["id"])).await;
        times.push(string(&job["started_at"]).parse::<chrono::DateTime<chrono::Utc>>().expect("a time"));
    }

    assert_eq!(server.mails().len(), 25);
    times.sort();
    let span = (times[24] - times[0]).num_milliseconds();
    assert!(span >= 990, "20 after the first 5 at 20 a second take a second, not {span} ms");
    let queues = ring.get("/v1/admin/queues").await.expect(200).json();
    assert_eq!((&queues["data"][0]["name"], &queues["data"][0]["concurrency"]), (&json!("mail"), &json!(2)));
    assert_eq!(queues["data"][0]["rate_limit"], json!({ "per_s": 20.0, "burst": 5 }));
}
