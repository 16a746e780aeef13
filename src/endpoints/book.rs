//! All endpoints of all tenants in memory: the fan-out asks it for each event, the dispatcher for each delivery.
//!
//! About 1 KiB an endpoint. It follows the change numbers, so a refresh reads what changed and nothing else. Called by
//! `engine::fan_out` and `engine::dispatch`.
//!
//! Invariant: after a refresh it shows all that was committed before it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use super::{Endpoint, store};
use crate::clock::Timestamp;
use crate::db::Db;
use crate::ids::{EndpointId, TenantId};
use crate::secret::Sealer;
use crate::secrets::SecretError;

const PAGE: i64 = 1000;

#[derive(Debug, Default)]
struct Pages {
    change: i64,
    tenants: HashMap<TenantId, BTreeMap<EndpointId, Arc<Endpoint>>>,
    /// By their last change, tombstones included.
    changes: BTreeMap<i64, Arc<Endpoint>>,
}

/// The book.
#[derive(Debug, Default)]
pub struct EndpointBook(RwLock<Pages>);

impl EndpointBook {
    /// Reads what changed. `true`: something did.
    /// # Errors
    /// [`SecretError`]; what was read before stays.
    pub async fn refresh(&self, db: &Db, sealer: &Sealer) -> Result<bool, SecretError> {
        let mut changed = false;
        loop {
            let since = self.0.read().unwrap_or_else(PoisonError::into_inner).change;
            let page = store::changed_since(db, sealer, since, PAGE).await?;
            let whole = page.len() as i64 == PAGE;
            changed = changed || !page.is_empty();
            let mut pages = self.0.write().unwrap_or_else(PoisonError::into_inner);
            for endpoint in page {
                pages.write(Arc::new(endpoint));
            }
            if !whole {
                return Ok(changed);
            }
        }
    }

    /// One endpoint.
    pub fn get(&self, tenant: TenantId, id: EndpointId) -> Option<Arc<Endpoint>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).tenants.get(&tenant)?.get(&id).cloned()
    }

    /// All endpoints of a tenant, the oldest first.
    pub fn of(&self, tenant: TenantId) -> Vec<Arc<Endpoint>> {
        let pages = self.0.read().unwrap_or_else(PoisonError::into_inner);
        pages.tenants.get(&tenant).map(|endpoints| endpoints.values().cloned().collect()).unwrap_or_default()
    }

    /// Forgets those that were deleted before; whoever follows the changes has seen it long since.
    pub fn forget_deleted(&self, before: Timestamp) {
        let mut pages = self.0.write().unwrap_or_else(PoisonError::into_inner);
        pages.changes.retain(|_, endpoint| !endpoint.deleted || endpoint.updated_at >= before);
    }

    /// The endpoints that changed after a change number, tombstones included, in the order of the changes.
    pub fn changed_after(&self, change: i64) -> Vec<Arc<Endpoint>> {
        let pages = self.0.read().unwrap_or_else(PoisonError::into_inner);
        pages.changes.range(change + 1..).map(|(_, endpoint)| endpoint.clone()).collect()
    }
}

impl Pages {
    fn write(&mut self, endpoint: Arc<Endpoint>) {
        self.change = self.change.max(endpoint.change);
        let of_tenant = self.tenants.entry(endpoint.tenant).or_default();
        if let Some(known) = of_tenant.get(&endpoint.id) {
            // Two refreshes may read the same change; the later one stays.
            if known.change >= endpoint.change {
                return;
            }
            self.changes.remove(&known.change);
        }
        if endpoint.deleted {
            of_tenant.remove(&endpoint.id);
        } else {
            of_tenant.insert(endpoint.id, endpoint.clone());
        }
        self.changes.insert(endpoint.change, endpoint);
    }
}
