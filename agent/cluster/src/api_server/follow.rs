//! One kind, listed and watched for ever.

use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use kube::core::Status;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource};
use podway_reconcile::Retry;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tokio::time;

use super::contact::{Contact, Failure, root_cause};
use super::fold::Fold;
use crate::decode::Decode;
use crate::manifest::{self, HEADLESS, SERVICE_PROXY_NAME};
use crate::{Event, Kind, Nodes};

/// An API server that restarts is back within seconds; one that stays away need not be asked more often than this,
/// thousands of nodes do.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MOST: Duration = Duration::from_secs(8);

/// A failure so long after the last one is a new one.
const RETRY_AFRESH: Duration = Duration::from_secs(60);

/// A list in which nothing moves for this long is begun again, the other way. Longer than an answer may take.
const LIST_STALLED: Duration = Duration::from_secs(60);

/// Something that a server may do without is asked for again after this long: it may have been upgraded, or given the
/// right.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// A kind that is followed.
pub(super) trait Followed:
    Decode + Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static
{
    const KIND: Kind;

    /// Whether podway works without it: in clusters that do not have it, and where it may not be read.
    const IS_OPTIONAL: bool = false;
}

impl Followed for manifest::Service {
    const KIND: Kind = Kind::Service;
}

impl Followed for manifest::EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;
}

impl Followed for manifest::Node {
    const KIND: Kind = Kind::Node;
}

/// Kubernetes has ServiceCIDRs since 1.33 (networking.k8s.io/v1), and the rights of flannel's manifest do not name them.
impl Followed for manifest::ServiceCidr {
    const KIND: Kind = Kind::ServiceCidr;
    const IS_OPTIONAL: bool = true;
}

/// The Services that the server is asked for (contract S1).
pub(super) fn services() -> watcher::Config {
    watcher::Config::default().labels(&format!("!{SERVICE_PROXY_NAME}")).fields("spec.clusterIP!=None")
}

/// The EndpointSlices that the server is asked for (contract S1).
pub(super) fn endpoint_slices() -> watcher::Config {
    watcher::Config::default().labels(&format!("!{HEADLESS}"))
}

/// The Nodes that the server is asked for, if any (contract S1).
pub(super) fn nodes(wanted: &Nodes) -> Option<watcher::Config> {
    match wanted {
        Nodes::All => Some(watcher::Config::default()),
        Nodes::Only(name) => Some(watcher::Config::default().fields(&format!("metadata.name={name}"))),
        Nodes::None => None,
    }
}

/// The receiver is gone.
pub(super) struct Closed;

/// How the first state is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listing {
    /// As a watch that begins with every object: neither end ever holds the whole list.
    Streamed,
    /// At once out of the server's cache, for servers without the former. Not page by page: pages are read from
    /// etcd, and every node of the cluster would.
    Cached,
}

/// Follows the selected objects of a kind; ends only when nobody listens any more.
pub(super) async fn follow<K: Followed>(
    client: &Client,
    selected: watcher::Config,
    contact: &Contact,
    events: &Sender<Event>,
) -> Result<(), Closed> {
    let mut follower = Follower { contact, events, fold: Fold::new(K::KIND), retry: Attempts::new() };
    let mut listing = Listing::Streamed;
    loop {
        let config = match listing {
            Listing::Streamed => selected.clone().streaming_lists(),
            Listing::Cached => watcher::Config { page_size: None, ..selected.clone().any_semantic() },
        };
        listing = follower.watch(watcher(Api::<K>::all(client.clone()), config), listing).await?;
        tracing::debug!(kind = ?K::KIND, ?listing, "listing the other way");
    }
}

struct Follower<'a> {
    contact: &'a Contact,
    events: &'a Sender<Event>,
    fold: Fold,
    retry: Attempts,
}

impl Follower<'_> {
    /// Follows one watcher until its way of listing turns out not to work; the way to try next.
    async fn watch<K: Followed>(
        &mut self,
        stream: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
        listing: Listing,
    ) -> Result<Listing, Closed> {
        let mut stream = pin!(stream);
        loop {
            let next = if self.fold.is_listing() {
                time::timeout(LIST_STALLED, stream.next()).await
            } else {
                Ok(stream.next().await)
            };
            match next {
                Ok(Some(Ok(event))) => self.tell(event).await?,
                Ok(Some(Err(error))) if listing == Listing::Streamed && is_unsupported(&error) => {
                    return Ok(Listing::Cached);
                }
                Ok(Some(Err(error))) if K::IS_OPTIONAL && is_withheld(&error) => {
                    self.go_without::<K>(&error).await?;
                }
                Ok(Some(Err(error))) => self.wait_after::<K>(&error).await?,
                Ok(None) => return Ok(listing),
                Err(_) => {
                    let reason = format!("a list has stood still for {} s", LIST_STALLED.as_secs());
                    self.report::<K>(&Failure::Unreached(reason)).await?;
                    return Ok(listing.other());
                }
            }
        }
    }

    async fn tell<K: Followed>(&mut self, event: watcher::Event<K>) -> Result<(), Closed> {
        for event in self.fold.apply(event) {
            if let Some(problem) = self.contact.dependence(&event) {
                self.send(Event::Problem(problem)).await?;
            }
            self.send(event).await?;
        }
        Ok(())
    }

    async fn wait_after<K: Followed>(&mut self, error: &watcher::Error) -> Result<(), Closed> {
        tracing::debug!(kind = ?K::KIND, %error, "watch interrupted");
        if let Some(failure) = failure(error) {
            self.report::<K>(&failure).await?;
        }
        time::sleep(self.retry.failed(Instant::now())).await;
        Ok(())
    }

    /// Takes what the server does not have, or does not show, for an empty list.
    async fn go_without<K: Followed>(&mut self, error: &watcher::Error) -> Result<(), Closed> {
        match failure(error) {
            Some(Failure::Refused(why)) if is_forbidden(error) => {
                tracing::info!("{:?}s cannot be read, and what they say is not known: {why}", K::KIND);
            }
            _ => tracing::debug!(kind = ?K::KIND, %error, "the server has none of this kind"),
        }
        self.contact.answered(K::KIND, Instant::now());
        self.tell(watcher::Event::<K>::Init).await?;
        self.tell(watcher::Event::<K>::InitDone).await?;
        time::sleep(LOOK_AGAIN).await;
        Ok(())
    }

    async fn report<K: Followed>(&mut self, failure: &Failure) -> Result<(), Closed> {
        match self.contact.failed(K::KIND, failure, Instant::now()) {
            Some(problem) => self.send(Event::Problem(problem)).await,
            None => Ok(()),
        }
    }

    async fn send(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }
}

impl Listing {
    fn other(self) -> Self {
        match self {
            Self::Streamed => Self::Cached,
            Self::Cached => Self::Streamed,
        }
    }
}

/// A back-off that starts afresh by itself: a watch that works again may have nothing to say for hours.
struct Attempts {
    retry: Retry,
    last: Option<Instant>,
}

impl Attempts {
    fn new() -> Self {
        Self { retry: Retry::new(RETRY_FIRST, RETRY_MOST), last: None }
    }

    fn failed(&mut self, now: Instant) -> Duration {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) > RETRY_AFRESH) {
            self.retry.succeeded();
        }
        self.last = Some(now);
        self.retry.failed()
    }
}

/// Whether the server does not know lists by watch (before 1.27, or switched off).
fn is_unsupported(error: &watcher::Error) -> bool {
    let refused = |status: &Status| matches!(status.code, 400 | 422);
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if refused(status))
}

/// Whether the server does not know the kind, or does not let it be read.
fn is_withheld(error: &watcher::Error) -> bool {
    is_forbidden(error) || refusal(error) == Some(404)
}

fn is_forbidden(error: &watcher::Error) -> bool {
    refusal(error) == Some(403)
}

/// The status code by which the server refuses a list or watch.
fn refusal(error: &watcher::Error) -> Option<u16> {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) => {
            Some(status.code)
        }
        _ => None,
    }
}

/// Why there is nothing to be had from the server; none where it only means that the next request will tell: a
/// connection that ended, or a version too old to go on from, after which the list is repeated.
fn failure(error: &watcher::Error) -> Option<Failure> {
    match error {
        watcher::Error::WatchFailed(kube::Error::ReadEvents(_) | kube::Error::HyperError(_)) => None,
        watcher::Error::WatchError(status) if status.code == 410 => None,
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            if status.code == 410 =>
        {
            None
        }
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            Some(Failure::Refused(answer(status)))
        }
        watcher::Error::WatchError(status) => Some(Failure::Refused(answer(status))),
        other => Some(Failure::Unreached(root_cause(other))),
    }
}

/// What the server said.
pub(super) fn answer(status: &Status) -> String {
    match status.message.as_str() {
        "" => format!("{} {}", status.code, status.reason),
        message => format!("{} {message}", status.code),
    }
}
