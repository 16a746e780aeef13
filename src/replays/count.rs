//! Counts what a replay would make, by the walk that makes it, without making anything.
//!
//! Page by page, each in a short transaction of its own. Counting has a limit in number and in time, because someone waits
//! for the answer; behind it the count is a lower bound, and says so.

use std::time::Duration;

use tokio::time::Instant;

use super::walk::{self, Pace, Walk};
use super::{Ask, Matched};
use crate::db::{Db, StoreError};
use crate::endpoints::book::EndpointBook;
use crate::ids::{ReplayId, TenantId};

const COUNT_MAX: i64 = 1_000_000;
const TIME_MAX: Duration = Duration::from_secs(10);
const PAGE: Pace = Pace { look: 1000, make: 1000 };

/// Counts. The book has to be fresh.
/// # Errors
/// [`StoreError`].
pub async fn count(db: &Db, book: &EndpointBook, tenant: TenantId, ask: &Ask) -> Result<Matched, StoreError> {
    let (mut place, mut count, give_up) = (ask.start(), 0, Instant::now() + TIME_MAX);
    let walk = Walk { tenant, replay: ReplayId::from_uuid(uuid::Uuid::nil()), ask, book };
    while count < COUNT_MAX && Instant::now() < give_up {
        let mut tx = db.begin().await?;
        let page = walk::page(&mut tx, &walk, place, PAGE).await?;
        tx.commit().await?;
        place = page.place;
        count += page.count();
        if page.done {
            return Ok(Matched { count, exact: true });
        }
    }
    Ok(Matched { count, exact: false })
}
