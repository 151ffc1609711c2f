//! What the cluster is told of this node's part: how it is reached, and that its network works.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use podway_cluster::NodeWriter;
use podway_overlay::LeaseAttributes;
use podway_reconcile::Retry;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::message;

/// How long the API server may take to note this node's part; it is asked again later.
const DEADLINE: Duration = Duration::from_secs(5);

/// Tells the API server by annotations of the Node and its condition, or etcd by a lease. The pod network does not
/// depend on it: what fails is told again later, whatever happens meanwhile.
pub(crate) struct Announcer {
    writer: Option<NodeWriter>,
    lease: Option<watch::Sender<LeaseAttributes>>,
    node: String,
    /// Whether the Node's condition is written.
    condition: bool,
    /// Annotations that were written and that the Node has not shown yet.
    told: BTreeMap<String, String>,
    /// Whether the Node was told that its network works.
    available: bool,
    /// When the API server is to be told again, after it could not be.
    again: Option<Instant>,
    retry: Retry,
}

impl Announcer {
    /// An announcer of the Node `node`; without a writer there is no API server to tell.
    pub(crate) fn new(writer: Option<NodeWriter>, node: &str, condition: bool) -> Self {
        Self {
            writer,
            lease: None,
            node: node.to_owned(),
            condition,
            told: BTreeMap::new(),
            available: false,
            again: None,
            retry: Retry::new(Duration::from_secs(1), Duration::from_secs(60)),
        }
    }

    /// An announcer through the attributes of a lease.
    pub(crate) fn by_lease(attributes: watch::Sender<LeaseAttributes>) -> Self {
        Self { lease: Some(attributes), ..Self::new(None, "", false) }
    }

    /// Tells the lease, if there is one, how this node is reached.
    pub(super) fn lease(&self, attributes: impl FnOnce() -> LeaseAttributes) {
        if let Some(lease) = &self.lease {
            let new = attributes();
            lease.send_if_modified(|held| {
                let differs = *held != new;
                *held = new;
                differs
            });
        }
    }

    /// Notes that the Node changed or went: one that is registered anew has neither annotations nor conditions.
    pub(super) fn node_changed(&mut self, is_there: bool) {
        self.available &= is_there;
        self.told.clear();
    }

    /// Writes the annotations that the Node has not, and once the network is `complete` its condition. After a failure
    /// returns when to try again.
    pub(super) async fn announce(
        &mut self,
        annotations: BTreeMap<String, String>,
        complete: bool,
    ) -> Option<Duration> {
        if let Some(due) = self.again
            && let Some(wait) = due.checked_duration_since(Instant::now())
        {
            return Some(wait);
        }
        match self.tell(annotations, complete).await {
            Ok(()) => {
                self.retry.succeeded();
                self.again = None;
            }
            Err(error) => {
                let wait = self.retry.failed();
                warn!(again_in = ?wait, "other nodes do not learn of this one: {}", message::of(&error));
                self.again = Some(Instant::now() + wait);
            }
        }
        self.again.map(|due| due.saturating_duration_since(Instant::now()))
    }

    async fn tell(&mut self, annotations: BTreeMap<String, String>, complete: bool) -> Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        let node = &self.node;
        if !annotations.is_empty() && annotations != self.told {
            let written = tokio::time::timeout(DEADLINE, writer.annotate(node, &annotations)).await;
            written.context("the API server does not answer")?.context("annotations of this Node")?;
            info!(node, "this node's part of the pod network is announced");
            self.told = annotations;
        }
        if complete && self.condition && !self.available {
            let written =
                tokio::time::timeout(DEADLINE, writer.network_available(node, SystemTime::now())).await;
            written
                .context("the API server does not answer")?
                .context("condition NetworkUnavailable of this Node")?;
            self.available = true;
        }
        Ok(())
    }
}
