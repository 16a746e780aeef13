//! The doctor's judgement of a database: facts from `db::doctor` become findings.
//!
//! Called by `doctor` with a database that answers. The judges are pure; `examine` asks and hands them the facts.
//!
//! Invariant: a fact that cannot be asked for is a finding of its own, and hides no other.

use super::report::{Check, Report, number, span};
use crate::clock::{self, Timestamp};
use crate::config::{Config, Database};
use crate::db::doctor::{self as facts, COUNTED_MAX, Holder, HotTable, Lingering, NodeFacts, ServerFacts};
use crate::db::migrate::{SchemaState, state};
use crate::db::{Db, StoreError};
use crate::keyfile;
use crate::secret::Sealer;

const OLDEST_SERVER: i32 = 140_000;
/// Due times are the database's; ours only stamp. So a difference confuses people and receivers, not the queue.
const SKEW_MAX_S: f64 = 5.0;
/// No transaction of ours is open for as long as this, and dead rows of hot tables pile up behind one that is.
const TRANSACTION_MAX_S: f64 = 300.0;
/// Whoever is idle in a transaction for so long has forgotten it.
const IDLE_MAX_S: f64 = 60.0;
/// Several rounds of autovacuum on a hot table, which begins at 1,000.
const DEAD_ROWS_MAX: i64 = 50_000;
/// PostgreSQL forces a freeze at 200 million and refuses writes at about 2,100 million.
const WRAPAROUND_WARN: i64 = 500_000_000;
const WRAPAROUND_FAIL: i64 = 1_500_000_000;
/// A slot that is this far behind holds back vacuum on every table.
const SLOT_AGE_MAX: i64 = 1_000_000;
/// Of the four days that are made ahead, so many must be there.
const DAYS_AHEAD: i32 = 2;

/// Examines the database.
pub(super) async fn examine(db: &Db, config: &Config, report: &mut Report) {
    let before = clock::now();
    match facts::server(db).await {
        Ok(server) => {
            report.add(version(&server));
            report.add(skew(before, clock::now(), server.now));
            report.add_all(durability(&server));
            report.add(connections(&server, config.db_connections));
            report.add(wraparound(server.wraparound_age));
        }
        Err(error) => report.add(unknown("server", &error)),
    }
    add(report, "open transactions", facts::holders(db).await, |found| holders(&found));
    add(report, "replication slots", facts::slots(db).await, |found| vec![slots(&found)]);
    add(report, "prepared transactions", facts::prepared(db).await, |found| vec![prepared(&found)]);
    match state(db).await {
        Ok(found) => {
            report.add(schema(found));
            if matches!(found, SchemaState::UpToDate | SchemaState::TooNew(_)) {
                examine_schema(db, config, report).await;
            }
        }
        Err(error) => report.add(unknown("schema", &error)),
    }
}

async fn examine_schema(db: &Db, config: &Config, report: &mut Report) {
    add(report, "partitions", facts::missing_partitions(db, DAYS_AHEAD).await, |found| {
        vec![partitions(&found)]
    });
    let nodes = facts::nodes(db).await;
    let counts = facts::counts(db).await;
    let tables = facts::hot_tables(db).await;
    if let (Ok(nodes), Ok(counts), Ok(tables)) = (&nodes, &counts, &tables) {
        report.add(backlog(counts, tables));
        // A dedup_key is remembered, and no work.
        let waits = |(table, count): &(&str, i64)| *table != "event_dedup" && *count > 0;
        report.add(workers(nodes, counts.iter().any(waits)));
        report.add(dead_rows(tables));
    } else {
        let errors = [nodes.err(), counts.err(), tables.err()];
        report.add_all(errors.iter().flatten().map(|error| unknown("backlog", error)));
    }
    add(report, "master key", facts::master_keys(db).await, |found| {
        master_key(config, &found).into_iter().collect()
    });
}

fn add<T>(
    report: &mut Report,
    what: &'static str,
    found: Result<T, StoreError>,
    judge: impl FnOnce(T) -> Vec<Check>,
) {
    match found {
        Ok(found) => report.add_all(judge(found)),
        Err(error) => report.add(unknown(what, &error)),
    }
}

/// The cause is what helps here, and it is the database's own text.
fn unknown(what: &'static str, error: &StoreError) -> Check {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    Check::warn(
        what,
        format!("cannot be asked for ({error}{cause})"),
        "run it as the user that owns the schema",
    )
}

fn version(server: &ServerFacts) -> Check {
    let text = format!("PostgreSQL {}", server.version);
    if server.version_number < OLDEST_SERVER {
        return Check::fail("server", format!("{text} is too old"), "upgrade it to 14 or newer");
    }
    if server.is_standby {
        let fix = "name the primary in DATABASE_URL";
        return Check::fail("server", format!("{text} is a standby: nothing can be written"), fix);
    }
    Check::ok("server", text)
}

/// The database was asked between the two times of ours.
fn skew(before: Timestamp, after: Timestamp, theirs: Timestamp) -> Check {
    let seconds = |span: chrono::TimeDelta| span.num_milliseconds() as f64 / 1000.0;
    let (ahead, behind) = (seconds(theirs - after), seconds(before - theirs));
    let off = ahead.max(behind).max(0.0);
    if off > SKEW_MAX_S {
        let word = if ahead > behind { "ahead of" } else { "behind" };
        let finding = format!("the database's is {} {word} this machine's", span(off));
        return Check::warn(
            "clock",
            finding,
            "let both machines keep time with NTP (timedatectl set-ntp true)",
        );
    }
    Check::ok(
        "clock",
        format!("the database's agrees with this machine's within {:.1} s", off.max(seconds(after - before))),
    )
}

fn durability(server: &ServerFacts) -> Vec<Check> {
    let loses = "an acknowledged job can be lost when the server crashes";
    let corrupts = "a power cut can destroy the database";
    let settings = [
        ("synchronous_commit", &server.synchronous_commit, loses, true),
        ("fsync", &server.fsync, corrupts, true),
        ("full_page_writes", &server.full_page_writes, corrupts, true),
        ("autovacuum", &server.autovacuum, "dead rows slow the queue down within hours", true),
    ];
    let off: Vec<Check> = settings
        .iter()
        .filter(|(_, value, _, _)| value.as_str() == "off")
        .map(|(name, _, risk, _)| {
            let fix = format!("ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();");
            Check::fail("durability", format!("{name} is off: {risk}"), fix)
        })
        .collect();
    if off.is_empty() {
        return vec![Check::ok(
            "durability",
            format!(
                "synchronous_commit {}, fsync on, full_page_writes on, autovacuum on",
                server.synchronous_commit
            ),
        )];
    }
    off
}

fn connections(server: &ServerFacts, wanted: u32) -> Check {
    let free = i64::from(server.max_connections) - server.connections;
    let finding = format!("{} of {} in use", server.connections, server.max_connections);
    if free < i64::from(wanted) {
        let fix = "raise max_connections, or lower RINGBACK_DB_CONNECTIONS of each process";
        return Check::warn("connections", format!("{finding}; a process of ours takes up to {wanted}"), fix);
    }
    Check::ok("connections", finding)
}

fn wraparound(age: i64) -> Check {
    let finding = format!("the oldest row is {} transactions old", number(age));
    let fix = "VACUUM (FREEZE) the oldest tables; find out what keeps autovacuum from doing it (below)";
    match age {
        WRAPAROUND_FAIL.. => {
            Check::fail("wraparound", format!("{finding}; at about 2,100 million all writes stop"), fix)
        }
        WRAPAROUND_WARN.. => Check::warn("wraparound", finding, fix),
        _ => Check::ok("wraparound", finding),
    }
}

fn holders(found: &[Holder]) -> Vec<Check> {
    let Some(oldest) = found.first() else {
        return vec![Check::ok("open transactions", "none but our own")];
    };
    let mut checks = Vec::new();
    for holder in found {
        let who = format!("process {} ({}, {})", holder.pid, named(&holder.application), holder.state);
        let end = format!("end it if it is not wanted: SELECT pg_terminate_backend({})", holder.pid);
        if holder.idle_s > IDLE_MAX_S {
            let finding = format!(
                "{who} has been idle in one for {}; rows deleted since then cannot be cleared away",
                span(holder.idle_s)
            );
            checks.push(Check::warn("open transactions", finding, end));
        } else if holder.open_s > TRANSACTION_MAX_S {
            let finding = format!(
                "{who} has had one open for {} ({} transactions ago); rows deleted since then cannot be cleared away",
                span(holder.open_s),
                number(holder.xmin_age)
            );
            checks.push(Check::warn("open transactions", finding, end));
        }
    }
    if checks.is_empty() {
        checks.push(Check::ok("open transactions", format!("the oldest is {} old", span(oldest.open_s))));
    }
    checks
}

fn named(application: &str) -> &str {
    if application.is_empty() { "unnamed" } else { application }
}

fn slots(found: &[Lingering]) -> Check {
    let worst = found.iter().find(|slot| !slot.is_active || slot.xmin_age > SLOT_AGE_MAX);
    match worst {
        Some(slot) => Check::warn(
            "replication slots",
            format!(
                "{} holds rows of {} transactions ago{}",
                slot.name,
                number(slot.xmin_age),
                if slot.is_active { "" } else { ", and nobody uses it" }
            ),
            format!(
                "SELECT pg_drop_replication_slot('{}') if it is not wanted",
                slot.name.replace('\'', "''")
            ),
        ),
        None if found.is_empty() => Check::ok("replication slots", "none holds rows"),
        None => Check::ok("replication slots", format!("{} in use", found.len())),
    }
}

fn prepared(found: &[Lingering]) -> Check {
    match found.iter().find(|transaction| transaction.open_s > TRANSACTION_MAX_S) {
        Some(transaction) => Check::warn(
            "prepared transactions",
            format!("{} has waited for its end for {}", transaction.name, span(transaction.open_s)),
            format!("ROLLBACK PREPARED '{}' if it is not wanted", transaction.name.replace('\'', "''")),
        ),
        None => Check::ok("prepared transactions", "none is forgotten"),
    }
}

fn schema(found: SchemaState) -> Check {
    match found {
        SchemaState::UpToDate => Check::ok("schema", "as this build wants it"),
        SchemaState::NotMade => {
            Check::fail("schema", "there is none yet", "ringback migrate; serve does it as well")
        }
        SchemaState::Behind(missing) => {
            let finding = format!("{missing} migrations of this build are missing");
            Check::fail("schema", finding, "ringback migrate; serve does it as well")
        }
        SchemaState::TooNew(version) => Check::fail(
            "schema",
            format!("a newer build brought it to version {version}, which this one does not know"),
            "run the newer build",
        ),
        SchemaState::Changed(version) => Check::fail(
            "schema",
            format!("migration {version} broke off, or ran with another text than this build holds"),
            "run the build that made it, or restore the database",
        ),
    }
}

fn partitions(missing: &[(String, i32)]) -> Check {
    let fix = "run a process with the role scheduler, which makes them; its log says why it could not";
    match missing.first() {
        None => Check::ok("partitions", format!("there for today and {DAYS_AHEAD} days ahead")),
        Some((name, 0)) => {
            Check::fail("partitions", format!("{name} is missing: nothing of today can be stored"), fix)
        }
        Some((name, days)) => {
            Check::warn("partitions", format!("{name} is missing, for {days} days ahead"), fix)
        }
    }
}

fn backlog(counts: &[(&'static str, i64)], tables: &[HotTable]) -> Check {
    let shown = |name: &str| {
        let count = counts.iter().find(|(table, _)| *table == name).map_or(0, |(_, count)| *count);
        if count <= COUNTED_MAX {
            return number(count);
        }
        let about = tables.iter().find(|table| table.name == name).map_or(0, |table| table.live);
        format!("more than {} (by the statistics about {})", number(COUNTED_MAX), number(about.max(count)))
    };
    Check::ok(
        "backlog",
        format!(
            "jobs ready {}, scheduled {}, held in lines and groups {}, running {}; events to fan out {}, half done {}; deliveries waiting {}",
            shown("job_ready"),
            shown("job_scheduled"),
            shown("job_held"),
            shown("job_leases"),
            shown("event_inbox"),
            shown("fan_out_rest"),
            shown("delivery_queue"),
        ),
    )
}

fn workers(nodes: &[NodeFacts], is_work_waiting: bool) -> Check {
    let alive: Vec<&str> = nodes.iter().filter(|node| node.is_alive).map(|node| node.name.as_str()).collect();
    if !alive.is_empty() {
        return Check::ok("nodes", format!("{} alive: {}", alive.len(), alive.join(", ")));
    }
    if is_work_waiting {
        return Check::warn("nodes", "none is alive, and work is waiting", "ringback serve");
    }
    Check::ok("nodes", "none is alive; ringback serve starts one")
}

fn dead_rows(tables: &[HotTable]) -> Check {
    let vacuumed = |table: &HotTable| match table.vacuumed_s {
        Some(seconds) => format!("vacuumed {} ago", span(seconds)),
        None => "never vacuumed".to_owned(),
    };
    match tables.first() {
        Some(table) if table.dead > DEAD_ROWS_MAX && table.dead > table.live => Check::warn(
            "dead rows",
            format!(
                "{} has about {} and {} live ones, {}",
                table.name,
                number(table.dead),
                number(table.live),
                vacuumed(table)
            ),
            format!("end what holds them (see open transactions), then VACUUM ringback.{}", table.name),
        ),
        Some(table) if table.dead > 0 => Check::ok(
            "dead rows",
            format!("at most about {}, in {}, {}", number(table.dead), table.name, vacuumed(table)),
        ),
        _ => Check::ok("dead rows", "none in the hot tables, by the statistics"),
    }
}

/// `None`: there is nothing to compare.
fn master_key(config: &Config, known: &[i32]) -> Option<Check> {
    let file = config.data_dir.join("master-key");
    let key = match (&config.master_key, &config.database) {
        (Some(key), _) => key.clone(),
        (None, Database::Embedded) => keyfile::read(&file).ok()?,
        (None, Database::External(_)) => {
            let fix = "set it for ringback serve as well; a new one: openssl rand -base64 32";
            return Some(Check::warn("master key", "RINGBACK_MASTER_KEY is not set here", fix));
        }
    };
    Some(match Sealer::from_base64(key.expose()) {
        Err(error) => {
            Check::fail("master key", error.to_string(), "set the key that this database was made with")
        }
        Ok(sealer) if known.is_empty() || known.contains(&sealer.key_id()) => {
            Check::ok("master key", "it is the one that this database's secrets were encrypted with")
        }
        Ok(_) => Check::fail(
            "master key",
            "it is not the one that this database's secrets were encrypted with",
            "set the former one; without it, signing secrets have to be made anew",
        ),
    })
}

#[cfg(test)]
#[path = "database_tests.rs"]
mod tests;
