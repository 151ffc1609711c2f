//! Tells when somebody else changes nftables (contract N13).

mod messages;

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use self::messages::Messages;
use crate::forward::ChainName;
use crate::{Error, NftProcess};

/// NFNLGRP_NFTABLES is group 7 (include/uapi/linux/netfilter/nfnetlink.h); the address takes groups as bits.
const GROUPS: u32 = 1 << 6;

/// The kernel tells of a transaction in one go: of 5,000 elements, our largest, in one or two megabytes. Memory is taken
/// when it is needed.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The kernel packs messages into buffers of a page or two.
const DATAGRAM: usize = 1 << 16;

/// A firewall that is reloaded comes in several transactions.
const SETTLE: Duration = Duration::from_millis(10);

/// A kernel that refuses to tell is not asked more often.
const REFUSED: Duration = Duration::from_secs(1);

/// What somebody else touched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Damage {
    /// A table of Services: see [`crate::Services::invalidate`].
    pub services: bool,
    /// The pod network's table: see [`crate::Network::invalidate`].
    pub network: bool,
    /// A forward chain came, or its policy changed: see [`crate::Forwarding::is_touched_by`].
    pub forward: bool,
    /// Other programs' chains that lost or got rules, or went.
    pub chains: BTreeSet<ChainName>,
}

impl Damage {
    /// What may have happened when that is not known.
    pub fn everything() -> Self {
        Self { services: true, network: true, forward: true, chains: BTreeSet::new() }
    }

    /// Adds another.
    pub fn merge(&mut self, other: Self) {
        self.services |= other.services;
        self.network |= other.network;
        self.forward |= other.forward;
        self.chains.extend(other.chains);
    }

    /// Whether nothing was touched that podway cares about.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Listens to what the kernel tells of changes in nftables in one network namespace.
#[derive(Debug)]
pub struct Watch {
    socket: AsyncFd<OwnedFd>,
    messages: Messages,
    /// Not to be asked before.
    refused_until: Option<Instant>,
}

impl Watch {
    /// Listens from now on, in the caller's network namespace. What `nft` and its clones write is not reported.
    /// Wants CAP_NET_ADMIN.
    pub fn open(nft: &NftProcess) -> Result<Self, Error> {
        let failed = |cause: Errno| Error::Watch { cause: cause.into() };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkNetFilter);
        let socket = socket(family, SockType::Raw, flags, protocol).map_err(failed)?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).map_err(failed)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS)).map_err(failed)?;
        Self::on(socket, nft)
    }

    /// Waits until somebody else has changed what podway cares about, and a moment longer for what follows. If the kernel
    /// refuses to tell, everything may have been changed. Nothing is lost if the wait is given up.
    pub async fn next(&mut self) -> Damage {
        loop {
            if !self.messages.damage().is_empty() {
                tokio::time::sleep(SETTLE).await;
                self.read();
                return self.messages.take();
            }
            if let Some(until) = self.refused_until {
                tokio::time::sleep_until(until).await;
                self.refused_until = None;
            }
            self.read();
            if self.messages.damage().is_empty() {
                // A guard that still says "ready" must be told otherwise, or this is a busy loop.
                match self.socket.readable().await {
                    Ok(mut guard) => guard.clear_ready(),
                    Err(_) => self.refused(),
                }
            }
        }
    }

    fn on(socket: OwnedFd, nft: &NftProcess) -> Result<Self, Error> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe code; this descriptor is owned and nobody else's"
        )]
        let socket = AsyncFd::new(socket).map_err(|cause| Error::Watch { cause })?;
        Ok(Self { socket, messages: Messages::of_others_than(nft.children().untold()), refused_until: None })
    }

    /// Reads all there is.
    fn read(&mut self) {
        let mut datagram = vec![0; DATAGRAM];
        while self.refused_until.is_none() {
            match recv(self.socket.as_raw_fd(), &mut datagram, MsgFlags::MSG_TRUNC) {
                Ok(length) => match datagram.get(..length) {
                    Some(datagram) => self.messages.read(datagram),
                    None => self.messages.lost(),
                },
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                // The buffer was full and something was thrown away.
                Err(Errno::ENOBUFS) => self.messages.lost(),
                Err(_) => self.refused(),
            }
        }
    }

    fn refused(&mut self) {
        self.messages.lost();
        self.refused_until = Some(Instant::now() + REFUSED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn n13_a_kernel_that_refuses_to_tell_may_have_changed_everything_and_is_asked_again_a_second_later()
    {
        // Nothing can be received from a pipe.
        let (pipe, _writer) = nix::unistd::pipe().unwrap();
        let mut watch = Watch::on(pipe, &NftProcess::default()).unwrap();
        assert_eq!(watch.next().await, Damage::everything());
        let early = tokio::time::timeout(REFUSED / 2, watch.next()).await;
        assert!(early.is_err(), "{early:?}");
        assert_eq!(watch.next().await, Damage::everything());
    }
}
