//! The loop: list, watch, keep what is held, tell what changed.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use podway_overlay::{Lease, LeaseAttributes, PerFamily};
use podway_reconcile::Retry;
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::LeaseRequest;
use super::hold::{self, Held, Written};
use super::mirror::Mirror;
use super::store::{Change, Grant, Store, Watch};
use super::teller::Teller;
use crate::{Error, Event};

/// flannel's, for its watches.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// flannel's, for a renewal that failed.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);

/// Before we write again over what another with our address wrote: two of them must not write all day long.
const CONTEST_PAUSE: Duration = Duration::from_secs(5);

/// Of another's write to our key we do not know when its lease ends; all there are last so long.
const ADOPTED: Duration = Duration::from_secs(24 * 3600);

/// One node in the store.
pub(super) struct Follower {
    store: Store,
    request: LeaseRequest,
    mirror: Mirror,
    teller: Teller,
    held: Option<Held>,
    /// What to try for before any other subnet.
    previous: PerFamily<Option<IpNet>>,
    /// Nothing is written before.
    not_before: Instant,
    renew_at: Option<Instant>,
    retry: Retry,
}

impl Follower {
    pub(super) fn new(store: Store, request: LeaseRequest, events: Sender<Event>) -> Self {
        Self {
            store,
            mirror: Mirror::default(),
            teller: Teller::new(events),
            held: None,
            previous: request.previous,
            request,
            not_before: Instant::now(),
            renew_at: None,
            retry: Retry::new(FIRST_PAUSE, LONGEST_PAUSE),
        }
    }

    /// Until nobody listens any more.
    pub(super) async fn run(mut self) {
        let mut retry = Retry::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let Some(error) = self.follow(&mut retry).await else { return };
            self.teller.outage(error.to_string()).await;
            tokio::select! {
                () = sleep(retry.failed()) => {}
                () = self.teller.closed() => return,
            }
        }
    }

    /// Lists and watches until that breaks; None when nobody listens any more.
    async fn follow(&mut self, retry: &mut Retry) -> Option<Error> {
        let mut watch = match self.list_and_watch().await {
            Ok(watch) => watch,
            Err(error) => return Some(error),
        };
        self.teller.recovered().await;
        loop {
            self.look_at_own_key().await;
            self.write_what_is_due().await;
            self.tell().await;
            let due = self.due();
            tokio::select! {
                changes = self.store.changes(&mut watch) => match changes {
                    Ok(changes) => {
                        retry.succeeded();
                        changes.into_iter().for_each(|change| self.note(change));
                    }
                    Err(error) => return Some(error),
                },
                () = sleep_until(due) => {}
                () = changed(&mut self.request.attributes) => {}
                () = self.teller.closed() => return None,
            }
        }
    }

    async fn list_and_watch(&mut self) -> Result<Watch, Error> {
        let (entries, revision) = self.store.list().await?;
        self.mirror.replace(entries, revision);
        self.store.watch(revision).await
    }

    fn note(&mut self, change: Change) {
        // What was freed may be what we lack.
        if self.held.is_none() && matches!(change, Change::Deleted(..)) {
            self.not_before = Instant::now();
        }
        self.mirror.apply(change);
    }

    /// Notices that somebody else wrote or deleted the key that we hold, or that it ran out.
    async fn look_at_own_key(&mut self) {
        let Some(held) = &mut self.held else { return };
        let Some(known) = self.mirror.get(&held.key) else {
            return self.lose("it was deleted or has run out".to_owned()).await;
        };
        if known.revision == held.revision {
            return;
        }
        let theirs = known.lease.as_ref().map(|lease| lease.attributes.clone()).unwrap_or_default();
        // A write of our own whose answer was lost.
        let ours = theirs == *self.request.attributes.borrow();
        if known.lease.is_ok() && !ours && !theirs.is_of_the_node_of(&held.published) {
            let holder = [theirs.public_ip.map(IpAddr::V4), theirs.public_ipv6.map(IpAddr::V6)];
            let holder = holder.into_iter().flatten().map(|address| address.to_string());
            return self.lose(format!("node {} holds it now", holder.collect::<Vec<_>>().join(", "))).await;
        }
        let contested = theirs != held.published && !ours;
        let lease = known.lease_id;
        held.grant = Grant { id: lease, until: (lease != 0).then(|| Instant::now() + ADOPTED) };
        (held.revision, held.published) = (known.revision, theirs);
        self.renew_at = held.renewal(self.request.renew_margin);
        if contested {
            self.not_before = Instant::now() + CONTEST_PAUSE;
            let message = "another program wrote it with this node's address: it is written again";
            self.tell_of_own_key(message.to_owned()).await;
        }
    }

    /// The subnets stay in use until there are others: the pods have their addresses.
    async fn lose(&mut self, why: String) {
        self.tell_of_own_key(format!("{why}: it is acquired again, or another subnet if it cannot be")).await;
        if let Some(held) = self.held.take() {
            self.previous = held.subnets;
            self.mirror.touch(&held.key);
        }
        self.not_before = Instant::now();
    }

    /// Acquires, publishes or renews, whichever is due.
    async fn write_what_is_due(&mut self) {
        if Instant::now() < self.due() {
            return;
        }
        match self.held.take() {
            Some(held) => self.write(held).await,
            None => self.acquire().await,
        }
    }

    async fn acquire(&mut self) {
        let acquired = hold::acquire(&mut self.store, &mut self.mirror, &self.request, &self.previous).await;
        match acquired {
            Ok(held) => {
                tracing::info!(key = %held.key, reservation = held.grant == Grant::NONE, "subnet acquired");
                self.keep(held);
                self.retry.succeeded();
            }
            Err(error) => {
                self.not_before = Instant::now() + self.retry.failed();
                self.teller.problem("subnet of this node", error.to_string()).await;
            }
        }
    }

    async fn write(&mut self, mut held: Held) {
        let wanted = self.request.attributes.borrow().clone();
        let written = match held.published == wanted {
            true => hold::renew(&mut self.store, &mut self.mirror, &mut held).await,
            false => hold::publish(&mut self.store, &mut self.mirror, &mut held, wanted).await,
        };
        match written {
            Ok(Written::Done) => {
                self.keep(held);
                self.retry.succeeded();
            }
            Ok(Written::Foreign) => {
                self.held = Some(held);
                self.not_before = Instant::now() + self.retry.failed();
                self.list_again().await;
            }
            Err(error) => {
                self.renew_at = self.renew_at.map(|at| at.max(Instant::now() + RENEWAL_PAUSE));
                self.not_before = Instant::now() + self.retry.failed();
                self.held = Some(held);
                self.tell_of_own_key(format!("{error}; tried again")).await;
            }
        }
    }

    /// A write found the key changed before the watch told.
    async fn list_again(&mut self) {
        // Without a list, the watch will tell.
        if let Ok((entries, revision)) = self.store.list().await {
            self.mirror.replace(entries, revision);
            self.look_at_own_key().await;
        }
    }

    fn keep(&mut self, held: Held) {
        self.renew_at = held.renewal(self.request.renew_margin);
        self.previous = held.subnets;
        self.mirror.touch(&held.key);
        self.held = Some(held);
    }

    /// When something is to be written.
    fn due(&self) -> Instant {
        match &self.held {
            Some(held) if held.published == *self.request.attributes.borrow() => {
                // Far in the future, there is always another look.
                self.renew_at.unwrap_or_else(|| Instant::now() + ADOPTED).max(self.not_before)
            }
            _ => self.not_before,
        }
    }

    /// Tells what changed: peers, what cannot be read, and our own Node.
    async fn tell(&mut self) {
        for key in self.mirror.take_changed() {
            let known = self.mirror.get(&key);
            let is_own = self.held.as_ref().is_some_and(|held| held.key == key);
            let lease = known.and_then(|known| known.lease.as_ref().ok());
            let peer = lease.filter(|lease| lease.is_taken() && !is_own).map(Lease::node);
            let fault =
                known.and_then(|known| known.lease.as_ref().err()).map(|error| format!("{error}: ignored"));
            let subject = self.subject(&key);
            self.teller.fault(&key, subject, fault).await;
            self.teller.peer(&key, peer).await;
        }
        if let Some(held) = &self.held {
            let node = self.request.attributes.borrow().node(self.request.node.clone(), &held.subnets);
            self.teller.own(node).await;
            self.teller.synced().await;
        }
    }

    async fn tell_of_own_key(&mut self, message: String) {
        if let Some(held) = &self.held {
            let subject = self.subject(&held.key);
            self.teller.problem(&subject, message).await;
        }
    }

    fn subject(&self, key: &str) -> String {
        format!("etcd key {}{key}", self.store.subnets())
    }
}

/// Returns when there is something else to publish.
async fn changed(attributes: &mut watch::Receiver<LeaseAttributes>) {
    if attributes.changed().await.is_err() {
        // Who could change it is gone.
        std::future::pending::<()>().await;
    }
}
