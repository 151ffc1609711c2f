//! What others do to the kernel's state, as soon as they have done it (contract N13).

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};
use tokio::time::Instant;

use crate::dump;
use crate::error::Error;
use crate::netconf;
use crate::netlink::Netlink;
use crate::view::{Drift, Followed, View};

const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Netconf,
    MulticastGroup::Ipv6Netconf,
];

/// The kernel doubles it. A notification occupies about 1 KiB, and our own 15,000 of a cold start with 5,000 peers are not read before
/// all of them are made. Memory is taken only while there are some.
const RECEIVE_BUFFER: usize = 16 << 20;

/// The longest notification by far is that of a link, of some KiB.
const LONGEST_MESSAGE: usize = 64 << 10;

/// A burst is over when nothing has come for so long.
const QUIET: Duration = Duration::from_millis(2);

/// A burst that goes on is judged nevertheless.
const LONGEST_BURST: Duration = Duration::from_millis(20);

/// Notifications read before others have their turn.
const AT_ONCE: usize = 4096;

/// A second socket, on which the kernel notifies changes of links, addresses, routes, neighbours, FDB entries and
/// forwarding.
///
/// What the requests of one [`Netlink`] and its clones cause is not reported, nor are pods that come and go: links
/// without an address of the machine, addresses, single-address routes and neighbours of pods.
pub struct Watch {
    socket: TokioSocket,
    netlink: Netlink,
    view: View,
    buffer: Vec<u8>,
    overrun: bool,
    /// Whether every notification there was has been read.
    drained: bool,
}

impl Watch {
    /// Opens the socket in the caller's network namespace, which must be that of `netlink`. What changes from now on
    /// is reported; to be called before the first look at the kernel.
    pub async fn open(netlink: &Netlink, followed: Followed) -> Result<Self, Error> {
        netlink.asked().keep();
        let socket = subscribe().map_err(Error::Open)?;
        let view = View::new(followed, netlink.port(), netlink.asked().clone());
        let buffer = Vec::with_capacity(LONGEST_MESSAGE);
        let mut watch =
            Self { socket, netlink: netlink.clone(), view, buffer, overrun: false, drained: false };
        watch.list().await?;
        Ok(watch)
    }

    /// Other links are ours, or other ranges the pods', from now on.
    pub fn follow(&mut self, followed: Followed) {
        self.view.follow(followed);
    }

    /// Waits until something may have changed by somebody else's doing. Changes that come in a burst are reported
    /// together, a few milliseconds after the last one.
    ///
    /// Can be dropped and called again at any time; nothing is lost. Not to be polled while a run of the same
    /// [`Netlink`] is under way: what is half done may look like somebody else's doing.
    pub async fn next(&mut self) -> Drift {
        loop {
            if !self.view.is_pending() {
                self.receive().await;
                self.drain();
            }
            let started = Instant::now();
            while self.view.is_pending() && started.elapsed() < LONGEST_BURST {
                tokio::time::sleep(QUIET).await;
                if self.drain() == 0 {
                    break;
                }
            }
            if self.overrun {
                self.catch_up().await;
            }
            let drift = self.view.judge();
            if self.drained {
                self.view.all_read();
            }
            if !drift.is_nothing() {
                tracing::debug!(?drift, "changed by somebody else");
                return drift;
            }
        }
    }

    /// The newest notifications were dropped: those that are left tell how things were, not how they are.
    async fn catch_up(&mut self) {
        while self.drain() > 0 {
            tokio::task::yield_now().await;
        }
        let listed = self.list().await;
        self.overrun = listed.is_err();
        if let Err(error) = listed {
            tracing::warn!("after notifications were lost: {error}");
        }
    }

    async fn list(&mut self) -> Result<(), Error> {
        let links = dump::links(&self.netlink).await?;
        let addresses = dump::addresses(&self.netlink, None).await?;
        self.view.list(links, addresses);
        Ok(())
    }

    /// Waits for a notification and reads it.
    async fn receive(&mut self) {
        self.buffer.clear();
        let (socket, buffer) = (&self.socket, &mut self.buffer);
        match poll_fn(|context| socket.poll_recv(context, buffer)).await {
            Ok(()) => self.note(),
            Err(error) => self.lose(&error),
        }
    }

    /// Reads what there is; returns how much it was.
    fn drain(&mut self) -> usize {
        self.drained = false;
        for count in 0..AT_ONCE {
            self.buffer.clear();
            match self.socket.socket_ref().recv(&mut self.buffer, 0) {
                Ok(_) => self.note(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.drained = true;
                    return count;
                }
                Err(error) => self.lose(&error),
            }
        }
        AT_ONCE
    }

    /// ENOBUFS: the kernel had more to tell than its buffer holds, and has dropped some of it.
    fn lose(&mut self, error: &io::Error) {
        tracing::debug!("notifications lost: {error}");
        self.overrun = true;
        self.view.lost();
    }

    fn note(&mut self) {
        if self.buffer.len() == self.buffer.capacity() {
            self.view.lost();
        }
        let mut rest = &self.buffer[..];
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            note(&mut self.view, &message, rest);
            let end = usize::try_from(message.length()).unwrap_or(rest.len()).next_multiple_of(4);
            rest = rest.get(end..).unwrap_or_default();
        }
    }
}

fn note(view: &mut View, message: &NetlinkBuffer<&[u8]>, bytes: &[u8]) {
    match message.message_type() {
        netconf::NEW => return view.apply_settings(netconf::read(message.payload())),
        netconf::GONE => return,
        _ => {}
    }
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
        Ok(NetlinkMessage { header, payload: NetlinkPayload::InnerMessage(message), .. }) => {
            view.apply(header.port_number, message);
        }
        Ok(_) => {}
        Err(error) => {
            tracing::debug!(kind = message.message_type(), "a notification that cannot be read: {error}");
            view.lost();
        }
    }
}

fn subscribe() -> io::Result<TokioSocket> {
    let mut watching = TokioSocket::new(NETLINK_ROUTE)?;
    let socket = watching.socket_mut();
    // More than rmem_max takes rights that a daemon for networks has.
    if setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&socket.as_fd(), sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in GROUPS {
        socket.add_membership(group as u32)?;
    }
    Ok(watching)
}
