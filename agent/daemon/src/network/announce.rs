//! What the cluster is told of this node's part: how it is reached, and that its network works.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use podway_cluster::NodeWriter;
use podway_overlay::LeaseAttributes;
use podway_reconcile::Retry;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::message;

/// How long the API server may take to note this node's part at first; each failure doubles it. A connection from an
/// address that this machine no longer has is silent for as long.
const FIRST_DEADLINE: Duration = Duration::from_secs(1);

/// An API server that is slower than this has other worries.
const LONGEST_DEADLINE: Duration = Duration::from_secs(30);

/// Tells the API server by annotations of the Node and its condition, or etcd by a lease. The pod network does not
/// depend on it, nor wait for it: what fails is told again later, whatever happens meanwhile.
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
    /// What is being told.
    telling: JoinSet<Result<News>>,
    /// When the API server is to be told again, after it could not be.
    again: Option<Instant>,
    retry: Retry,
}

/// What the API server does not know yet.
#[derive(Debug, Clone)]
struct News {
    annotations: BTreeMap<String, String>,
    available: bool,
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
            telling: JoinSet::new(),
            again: None,
            retry: Retry::new(Duration::from_millis(250), Duration::from_secs(60)),
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
        // What it would say may be of the Node that was.
        self.telling = JoinSet::new();
    }

    /// Begins to write the annotations that the Node has not, and once the network is `complete` its condition, unless
    /// that is under way. After a failure returns when to try again.
    pub(super) fn announce(
        &mut self,
        annotations: BTreeMap<String, String>,
        complete: bool,
    ) -> Option<Duration> {
        let annotations = if annotations == self.told { BTreeMap::new() } else { annotations };
        let news = News { annotations, available: complete && self.condition && !self.available };
        if (news.annotations.is_empty() && !news.available) || !self.telling.is_empty() {
            return None;
        }
        if let Some(wait) = self.again.and_then(|due| due.checked_duration_since(Instant::now())) {
            return Some(wait);
        }
        let writer = self.writer.clone()?;
        let node = self.node.clone();
        let factor = 1_u32.checked_shl(self.retry.failures()).unwrap_or(u32::MAX);
        let deadline = FIRST_DEADLINE.saturating_mul(factor).min(LONGEST_DEADLINE);
        self.telling.spawn_local(tell(writer, node, news, deadline));
        None
    }

    /// Waits until the API server was told, or could not be; then [`Self::announce`] is to be called. May be dropped and
    /// called again.
    pub(super) async fn told(&mut self) {
        match self.telling.join_next().await {
            Some(Ok(Ok(News { annotations, available }))) => {
                self.retry.succeeded();
                self.again = None;
                self.available |= available;
                if !annotations.is_empty() {
                    info!(node = self.node, "this node's part of the pod network is announced");
                    self.told = annotations;
                }
            }
            Some(Ok(Err(error))) => {
                let wait = self.retry.failed();
                warn!(again_in = ?wait, "other nodes do not learn of this one: {}", message::of(&error));
                self.again = Some(Instant::now() + wait);
            }
            // Given up, or nothing is being told.
            Some(Err(_)) => {}
            None => std::future::pending().await,
        }
    }
}

async fn tell(writer: NodeWriter, node: String, news: News, deadline: Duration) -> Result<News> {
    if !news.annotations.is_empty() {
        let written = tokio::time::timeout(deadline, writer.annotate(&node, &news.annotations)).await;
        written.context("the API server does not answer")?.context("annotations of this Node")?;
    }
    if news.available {
        let written =
            tokio::time::timeout(deadline, writer.network_available(&node, SystemTime::now())).await;
        written
            .context("the API server does not answer")?
            .context("condition NetworkUnavailable of this Node")?;
    }
    Ok(news)
}
