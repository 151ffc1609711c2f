//! Getting a subnet, and keeping it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use podway_overlay::{Acquisition, Decision, Lease, LeaseAttributes, LeaseKey, PerFamily};
use tokio::time::{Instant, sleep};

use super::LeaseRequest;
use super::mirror::Mirror;
use super::store::{Condition, Entry, Grant, Store};
use crate::Error;

/// So many times a lost race is run again at once.
const RACES: u32 = 20;

/// After a lost race, the next try comes at a random time within this much for each race lost.
const PAUSE_MILLIS: u64 = 10;

/// Leases are renewed no more often than this, however large the margin.
const LEAST_RENEWAL: Duration = Duration::from_secs(1);

/// What this node holds.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) key: Arc<str>,
    pub(super) subnets: PerFamily<Option<IpNet>>,
    /// What was written.
    pub(super) published: LeaseAttributes,
    /// etcd's revision that wrote it.
    pub(super) revision: i64,
    /// [`Grant::NONE`] for a reservation.
    pub(super) grant: Grant,
}

/// Why there is no subnet.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoSubnet {
    #[error(transparent)]
    Store(#[from] Error),
    #[error(
        "out of subnets: every {0} subnet of the range is held; a larger Network or the deletion of a key helps"
    )]
    Exhausted(podway_overlay::Family),
    #[error("{RACES} races for a subnet were lost in a row")]
    Races,
}

/// What became of a write.
pub(super) enum Written {
    Done,
    /// The key is not as we left it: it must be looked at.
    Foreign,
}

impl Held {
    /// When it must be renewed; never if it does not run out.
    pub(super) fn renewal(&self, margin: Duration) -> Option<Instant> {
        let until = self.grant.until?;
        Some(until.checked_sub(margin).unwrap_or(until).max(Instant::now() + LEAST_RENEWAL))
    }

    fn entry(&self) -> Entry {
        let (value, lease) = (self.published.render(), self.grant.id);
        Entry { key: self.key.clone(), value, lease, revision: self.revision }
    }
}

/// Gets a subnet in flannel's order. `previous` are those of a former run or hold.
pub(super) async fn acquire(
    store: &mut Store,
    mirror: &mut Mirror,
    request: &LeaseRequest,
    previous: &PerFamily<Option<IpNet>>,
) -> Result<Held, NoSubnet> {
    let mut spare = None;
    let acquired = Acquiring { store, mirror, request, previous, spare: &mut spare }.run().await;
    if let Some(unused) = spare {
        store.revoke(unused.id).await;
    }
    acquired
}

/// Writes what the node has to say now, without a new lease.
pub(super) async fn publish(
    store: &mut Store,
    mirror: &mut Mirror,
    held: &mut Held,
    attributes: LeaseAttributes,
) -> Result<Written, Error> {
    let grant = held.grant;
    write(store, mirror, held, attributes, grant).await
}

/// Moves the key to a new lease of 24 hours and ends the old one.
pub(super) async fn renew(store: &mut Store, mirror: &mut Mirror, held: &mut Held) -> Result<Written, Error> {
    let (old, new) = (held.grant, store.grant().await?);
    let attributes = held.published.clone();
    let written = write(store, mirror, held, attributes, new).await;
    match &written {
        Ok(Written::Done) => store.revoke(old.id).await,
        Ok(Written::Foreign) => store.revoke(new.id).await,
        // Nobody knows whether the key is attached to it.
        Err(_) => {}
    }
    written
}

async fn write(
    store: &mut Store,
    mirror: &mut Mirror,
    held: &mut Held,
    attributes: LeaseAttributes,
    grant: Grant,
) -> Result<Written, Error> {
    let condition = Condition::Unchanged(held.revision);
    let Some(revision) = store.put(&held.key, attributes.render(), grant.id, condition).await? else {
        return Ok(Written::Foreign);
    };
    *held = Held { published: attributes, revision, grant, ..held.clone() };
    mirror.put(held.entry());
    Ok(Written::Done)
}

struct Acquiring<'a> {
    store: &'a mut Store,
    mirror: &'a mut Mirror,
    request: &'a LeaseRequest,
    previous: &'a PerFamily<Option<IpNet>>,
    /// A lease that no key is attached to.
    spare: &'a mut Option<Grant>,
}

impl Acquiring<'_> {
    async fn run(mut self) -> Result<Held, NoSubnet> {
        let request = self.request;
        for race in 1..=RACES {
            let (entries, revision) = self.store.list().await?;
            self.mirror.replace(entries, revision);
            let attributes = request.attributes.borrow().clone();
            let wish =
                Acquisition { ranges: &request.ranges, attributes: &attributes, previous: self.previous };
            let leases = self.mirror.leases();
            let held = match wish.decide(&leases, random()) {
                Decision::Reuse(lease) => self.reuse(lease, attributes).await?,
                Decision::Delete(lease) => self.delete(lease).await?,
                Decision::Take(subnets) | Decision::Create(subnets) => {
                    self.create(subnets, attributes, revision).await?
                }
                Decision::Exhausted(family) => return Err(NoSubnet::Exhausted(family)),
            };
            match held {
                Some(held) => {
                    self.mirror.put(held.entry());
                    return Ok(held);
                }
                None => sleep(Duration::from_millis(random() % (u64::from(race) * PAUSE_MILLIS))).await,
            }
        }
        Err(NoSubnet::Races)
    }

    /// A reservation stays one, unlike with flannel, which gives it a lease.
    async fn reuse(&mut self, lease: &Lease, attributes: LeaseAttributes) -> Result<Option<Held>, NoSubnet> {
        let grant = if lease.reservation { Grant::NONE } else { self.grant().await? };
        let revision = self.revision(&lease.key);
        let condition = Condition::Unchanged(revision);
        self.put(lease.key.clone(), lease.subnets, attributes, grant, condition).await
    }

    async fn delete(&mut self, lease: &Lease) -> Result<Option<Held>, NoSubnet> {
        tracing::info!(key = %lease.key, "our lease does not go with the ranges: deleted");
        if self.store.delete(&lease.key, self.revision(&lease.key)).await?.is_some() {
            self.mirror.remove(&lease.key);
        }
        Ok(None)
    }

    /// The key names both subnets of a dual-stack node, so that it alone does not keep two nodes from one subnet of
    /// either family.
    async fn create(
        &mut self,
        subnets: PerFamily<Option<IpNet>>,
        attributes: LeaseAttributes,
        listed: i64,
    ) -> Result<Option<Held>, NoSubnet> {
        let key = LeaseKey(subnets).to_string().into();
        let grant = self.grant().await?;
        let condition = match subnets.iter().count() {
            1 => Condition::Absent,
            _ => Condition::AbsentSince(listed),
        };
        self.put(key, subnets, attributes, grant, condition).await
    }

    async fn put(
        &mut self,
        key: Arc<str>,
        subnets: PerFamily<Option<IpNet>>,
        published: LeaseAttributes,
        grant: Grant,
        condition: Condition,
    ) -> Result<Option<Held>, NoSubnet> {
        let put = self.store.put(&key, published.render(), grant.id, condition).await;
        // Without an answer, nobody knows whether the key is attached to it.
        *self.spare = self.spare.take().filter(|spare| matches!(put, Ok(None)) || spare.id != grant.id);
        Ok(put?.map(|revision| Held { key, subnets, published, revision, grant }))
    }

    /// The lease of the try before, if that was lost.
    async fn grant(&mut self) -> Result<Grant, NoSubnet> {
        match *self.spare {
            Some(spare) => Ok(spare),
            None => Ok(*self.spare.insert(self.store.grant().await?)),
        }
    }

    fn revision(&self, key: &str) -> i64 {
        self.mirror.get(key).map_or(0, |known| known.revision)
    }
}

/// From the seed that the standard library takes for its maps: to choose by, not to keep secrets with.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
