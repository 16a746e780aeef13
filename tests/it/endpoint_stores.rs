//! What the sender is offered by the stores of endpoints: changes by number, counters, health.

use ringback::clock;
use ringback::db::Db;
use ringback::endpoints::health_store::{
    self, Health, LATENCY_CLASSES, MinuteCounts, add_minutes, load_health, set_health,
};
use ringback::endpoints::{Endpoint, EndpointStatus, Settings, change, store};
use ringback::ids::{EndpointId, TenantId};
use ringback::secret::Sealer;

use crate::harness::database::TestDatabase;
use crate::harness::service::{MASTER_KEY, database};

async fn start() -> (TestDatabase, Db, Sealer) {
    let database = database().await;
    let db = Db::new(database.options(), 4);
    (database, db, Sealer::from_base64(MASTER_KEY).expect("a key"))
}

async fn create(db: &Db, sealer: &Sealer, url: &str) -> Endpoint {
    let mut settings = Settings::new(url.to_owned());
    settings.headers.insert("x-team".to_owned(), "billing".to_owned());
    let endpoint = Endpoint::new(TenantId::fresh(), settings);
    let made = change::create(db, sealer, &endpoint, |_| Ok(None)).await.expect("created");
    assert!(made.is_some());
    endpoint
}

#[tokio::test]
async fn a_reader_who_goes_by_change_numbers_misses_nothing() {
    let (_database, db, sealer) = start().await;
    let one = create(&db, &sealer, "https://example.com/1").await;
    let two = create(&db, &sealer, "https://example.com/2").await;
    let (all, last) = store::load_all(&db, &sealer).await.expect("loaded");
    assert_eq!(all.iter().map(|endpoint| endpoint.id).collect::<Vec<_>>(), [one.id, two.id]);
    assert_eq!(all[0].settings.headers["x-team"], "billing");
    assert_eq!(all[1].change, last);

    let disabled = change::disable(&db, &sealer, (one.tenant, one.id), clock::now(), "it answered 410").await;
    assert!(disabled.expect("disabled"));
    let again = change::disable(&db, &sealer, (one.tenant, one.id), clock::now(), "again").await;
    assert!(!again.expect("no error"));
    change::delete(&db, &sealer, (two.tenant, two.id), |_| Ok(())).await.expect("deleted");

    let changed = store::changed_since(&db, &sealer, last, 10).await.expect("read");
    assert_eq!(changed.len(), 2);
    assert_eq!((changed[0].id, changed[0].settings.status), (one.id, EndpointStatus::Disabled));
    assert_eq!(changed[0].status_reason.as_deref(), Some("it answered 410"));
    assert!(changed[1].deleted && changed[1].id == two.id && changed[1].change > changed[0].change);
    assert!(store::changed_since(&db, &sealer, changed[1].change, 10).await.expect("read").is_empty());
    let (left, _) = store::load_all(&db, &sealer).await.expect("loaded");
    assert_eq!(left.iter().map(|endpoint| endpoint.id).collect::<Vec<_>>(), [one.id]);
}

#[tokio::test]
async fn another_tenants_endpoint_is_not_there() {
    let (_database, db, sealer) = start().await;
    let one = create(&db, &sealer, "https://example.com/1").await;
    let stranger = TenantId::fresh();
    assert!(store::get(&db, &sealer, stranger, one.id).await.is_err());
    assert!(change::delete(&db, &sealer, (stranger, one.id), |_| Ok(())).await.is_err());
    assert!(store::get(&db, &sealer, one.tenant, one.id).await.is_ok());
}

#[tokio::test]
async fn counts_of_a_minute_add_up() {
    let (_database, db, _) = start().await;
    let minute = clock::now();
    let (tenant, endpoints) = (TenantId::fresh(), [EndpointId::fresh(), EndpointId::fresh()]);
    let counts = |endpoint, succeeded, failed, class: usize| {
        let mut latency = [0; LATENCY_CLASSES];
        latency[class] = succeeded + failed;
        MinuteCounts { tenant, endpoint, minute, succeeded, failed, latency }
    };
    add_minutes(&db, &[]).await.expect("nothing");
    add_minutes(&db, &[counts(endpoints[0], 3, 0, 0), counts(endpoints[1], 0, 9, 17)]).await.expect("added");
    add_minutes(&db, &[counts(endpoints[0], 1, 2, 4)]).await.expect("added");

    let stats = health_store::stats(&db, tenant, endpoints[0], 1).await.expect("stats");
    assert_eq!((stats.succeeded, stats.failed, stats.latency.len()), (4, 2, LATENCY_CLASSES));
    assert_eq!((stats.latency[0], stats.latency[4], stats.latency.iter().sum::<i64>()), (3, 3, 6));
    let other = health_store::stats(&db, tenant, endpoints[1], 1).await.expect("stats");
    assert_eq!((other.succeeded, other.failed, other.latency[17]), (0, 9, 9));
    assert_eq!(health_store::purge(&db, -1, 10).await.expect("purged"), 2);
}

#[tokio::test]
async fn health_is_kept_while_an_endpoint_is_not_well() {
    let (_database, db, _) = start().await;
    let ill = Health {
        tenant: TenantId::fresh(),
        endpoint: EndpointId::fresh(),
        failing_since: Some(clock::now()),
        open_until: None,
        failures: 3,
    };
    set_health(&db, &[ill]).await.expect("written");
    set_health(&db, &[Health { failures: 4, ..ill }]).await.expect("written");
    assert_eq!(load_health(&db).await.expect("read"), [Health { failures: 4, ..ill }]);
    set_health(&db, &[Health { failing_since: None, failures: 0, ..ill }]).await.expect("written");
    assert!(load_health(&db).await.expect("read").is_empty());
}
