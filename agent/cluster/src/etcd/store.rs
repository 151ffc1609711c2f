//! flannel's keys in etcd: listed, watched, and written on conditions (contract N3).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Streaming;

use super::client::Client;
use super::wire::{
    Compare, Compared, DeleteRangeRequest, GRANT, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest,
    LeaseRevokeResponse, Operation, PutRequest, RANGE, REVOKE, RangeRequest, RangeResponse, Relation,
    RequestOp, TXN, Target, TxnRequest, TxnResponse, WatchCreateRequest, WatchEvent, WatchResponse,
};
use crate::{Error, EtcdConfig};

/// How long a subnet is leased (flannel, pkg/subnet/etcd/local_manager.go).
const LEASE_SECONDS: i64 = 24 * 3600;

/// The keys below one prefix. Keys of leases are named without `<prefix>/subnets/`.
#[derive(Clone)]
pub(super) struct Store {
    client: Client,
    prefix: String,
}

/// A key below `<prefix>/subnets/` and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Arc<str>,
    pub(super) value: String,
    /// etcd's number of the lease; 0 is none.
    pub(super) lease: i64,
    /// etcd's revision that wrote it.
    pub(super) revision: i64,
}

/// A lease in etcd that keys can be attached to; 0 is none, and never ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) id: i64,
    pub(super) until: Option<Instant>,
}

impl Grant {
    pub(super) const NONE: Self = Self { id: 0, until: None };
}

/// What must be so for a key to be written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Condition {
    /// There is no such key.
    Absent,
    /// There is no such key, and nothing below `subnets/` was written after this revision.
    AbsentSince(i64),
    /// Nobody wrote it after this revision.
    Unchanged(i64),
}

/// A change of one key.
#[derive(Debug)]
pub(super) enum Change {
    Put(Entry),
    /// The key and the revision of its deletion.
    Deleted(Arc<str>, i64),
}

/// A running watch of `subnets/`.
#[derive(Debug)]
pub(super) struct Watch {
    stream: Streaming<WatchResponse>,
    subnets: String,
}

impl Store {
    pub(super) fn open(config: &EtcdConfig) -> Result<Self, Error> {
        let prefix = config.prefix.trim_end_matches('/').to_owned();
        Ok(Self { client: Client::open(config)?, prefix })
    }

    /// The text under `<prefix>/config`.
    pub(super) async fn config(&mut self) -> Result<Option<String>, Error> {
        let question = RangeRequest { key: self.config_key().into_bytes(), range_end: Vec::new() };
        let answer: RangeResponse = self.client.call(RANGE, question).await?;
        Ok(answer.kvs.into_iter().next().map(|kv| text(kv.value)))
    }

    /// All keys below `subnets/`, and the revision that they are of.
    pub(super) async fn list(&mut self) -> Result<(Vec<Entry>, i64), Error> {
        let (key, range_end) = self.range();
        let answer: RangeResponse = self.client.call(RANGE, RangeRequest { key, range_end }).await?;
        let subnets = self.subnets();
        let entries = answer.kvs.into_iter().filter_map(|kv| match change(&subnets, 0, kv)? {
            Change::Put(entry) => Some(entry),
            Change::Deleted(..) => None,
        });
        Ok((entries.collect(), answer.header.unwrap_or_default().revision))
    }

    /// Watches all keys below `subnets/` for what was written after a revision.
    pub(super) async fn watch(&mut self, after: i64) -> Result<Watch, Error> {
        let (key, range_end) = self.range();
        let create = WatchCreateRequest { key, range_end, start_revision: after + 1 };
        Ok(Watch { stream: self.client.watch(create).await?, subnets: self.subnets() })
    }

    /// What changed since the last call. Cancel-safe.
    pub(super) async fn changes(&mut self, watch: &mut Watch) -> Result<Vec<Change>, Error> {
        let answer = watch.stream.message().await.map_err(|status| self.client.failed(&status))?;
        let ended = |cause: String| Error::Etcd { endpoint: self.client.url(), cause };
        let answer = answer.ok_or_else(|| ended("the watch has ended".to_owned()))?;
        if answer.compact_revision != 0 {
            return Err(ended(format!("compacted up to revision {}", answer.compact_revision)));
        }
        if answer.canceled {
            return Err(ended(format!("the watch was refused: {}", answer.cancel_reason)));
        }
        let change = |event: WatchEvent| change(&watch.subnets, event.kind, event.kv?);
        Ok(answer.events.into_iter().filter_map(change).collect())
    }

    /// A new lease of 24 hours.
    pub(super) async fn grant(&mut self) -> Result<Grant, Error> {
        let asked = Instant::now();
        let question = LeaseGrantRequest { ttl: LEASE_SECONDS };
        let answer: LeaseGrantResponse = self.client.call(GRANT, question).await?;
        let granted = Duration::from_secs(u64::try_from(answer.ttl).unwrap_or_default());
        Ok(Grant { id: answer.id, until: Some(asked + granted) })
    }

    /// Ends a lease that no key is attached to. When that fails it runs out by itself.
    pub(super) async fn revoke(&mut self, id: i64) {
        let revoked: Result<LeaseRevokeResponse, _> =
            self.client.call(REVOKE, LeaseRevokeRequest { id }).await;
        if let Err(error) = revoked {
            tracing::debug!(%error, "a lease that is not used was not revoked");
        }
    }

    /// Writes a key if the condition holds; the revision that did it. After an error nobody knows whether it did; None
    /// says that it did not.
    pub(super) async fn put(
        &mut self,
        key: &str,
        value: String,
        lease: i64,
        condition: Condition,
    ) -> Result<Option<i64>, Error> {
        let put = PutRequest { key: self.key(key), value: value.into_bytes(), lease };
        self.transaction(self.compare(key, condition), Operation::Put(put)).await
    }

    /// Deletes a key if nobody wrote it after this revision.
    pub(super) async fn delete(&mut self, key: &str, revision: i64) -> Result<Option<i64>, Error> {
        let compare = self.compare(key, Condition::Unchanged(revision));
        self.transaction(compare, Operation::Delete(DeleteRangeRequest { key: self.key(key) })).await
    }

    /// `<prefix>/config`.
    pub(super) fn config_key(&self) -> String {
        format!("{}/config", self.prefix)
    }

    /// `<prefix>/subnets/`.
    pub(super) fn subnets(&self) -> String {
        format!("{}/subnets/", self.prefix)
    }

    async fn transaction(
        &mut self,
        compare: Vec<Compare>,
        operation: Operation,
    ) -> Result<Option<i64>, Error> {
        let success = vec![RequestOp { request: Some(operation) }];
        let answer: TxnResponse = self.client.call_once(TXN, TxnRequest { compare, success }).await?;
        Ok(answer.succeeded.then(|| answer.header.unwrap_or_default().revision))
    }

    fn compare(&self, key: &str, condition: Condition) -> Vec<Compare> {
        let absent = || Compare {
            result: Relation::Equal.into(),
            target: Target::Version.into(),
            key: self.key(key),
            to: Some(Compared::Version(0)),
            range_end: Vec::new(),
        };
        match condition {
            Condition::Absent => vec![absent()],
            Condition::AbsentSince(revision) => {
                let (key, range_end) = self.range();
                let to = Some(Compared::ModRevision(revision + 1));
                let (result, target) = (Relation::Less.into(), Target::ModRevision.into());
                vec![absent(), Compare { result, target, key, to, range_end }]
            }
            Condition::Unchanged(revision) => {
                let to = Some(Compared::ModRevision(revision));
                vec![Compare { target: Target::ModRevision.into(), to, ..absent() }]
            }
        }
    }

    fn key(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.subnets()).into_bytes()
    }

    /// From `subnets/` to the first key behind: `0` follows `/`.
    fn range(&self) -> (Vec<u8>, Vec<u8>) {
        (self.key(""), format!("{}/subnets0", self.prefix).into_bytes())
    }
}

fn change(subnets: &str, kind: i32, kv: super::wire::KeyValue) -> Option<Change> {
    let key: Arc<str> = text(kv.key).strip_prefix(subnets)?.into();
    Some(match kind {
        0 => Change::Put(Entry { key, value: text(kv.value), lease: kv.lease, revision: kv.mod_revision }),
        _ => Change::Deleted(key, kv.mod_revision),
    })
}

/// Keys and values are text; of what is not, the reader says what it lacks.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
