//! The one door to the kernel.

use std::collections::BTreeSet;
use std::io;

use futures::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use podway_overlay::{ExternalInterface, LinkName, Observed, Op};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::AsyncSocket;

use crate::asked::Asked;
use crate::error::Error;
use crate::external::{self, InterfaceChoice};
use crate::observe;
use crate::run::{self, Report};

/// A netlink socket in the network namespace in which it was opened.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
    port: u32,
    asked: Asked,
}

impl Netlink {
    /// Opens the socket in the caller's network namespace. Must be called in a tokio runtime, which carries the
    /// connection as a task of its own until the last clone is dropped.
    pub fn open() -> Result<Self, Error> {
        // Strict: the kernel filters dumps instead of handing over every route of the machine (Linux 4.20).
        let (mut connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(Error::Open)?;
        let port = connection.socket_mut().socket_mut().bind_auto().map_err(Error::Open)?.port_number();
        tokio::spawn(connection);
        Ok(Self { handle, port, asked: Asked::default() })
    }

    /// Finds the interface that carries the encapsulated packets (contract N8).
    ///
    /// Of its addresses the best of each family: global before link-local, permanent before dynamic, lasting before
    /// temporary, the first otherwise; never a deprecated one.
    pub async fn external_interface(&self, choice: &InterfaceChoice) -> Result<ExternalInterface, Error> {
        external::find(self, choice).await
    }

    /// Reads what of the pod network is in the kernel: links with our mark or of these names and what is on them,
    /// routes of our protocol number, and the kernel settings that matter.
    pub async fn observe(&self, names: &BTreeSet<LinkName>) -> Result<Observed, Error> {
        observe::observe(self, names).await
    }

    /// Carries out steps in their order. A step that fails does not stop those that have nothing to do with it; see
    /// [`Report`].
    pub async fn run(&self, ops: &[Op]) -> Report {
        self.asked.note(ops);
        run::run(self, ops).await
    }

    /// Removes our routes and the links with our mark, and nothing else (contract N20).
    pub async fn remove_all(&self) -> Result<Report, Error> {
        let observed = self.observe(&BTreeSet::new()).await?;
        Ok(self.run(&podway_overlay::removal(&observed)).await)
    }

    /// The port by which notifications name this socket as the one that asked for the change.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    pub(crate) fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Sends a request that is answered with success or an error number.
    ///
    /// It is on its way when this returns: requests reach the kernel in the order of the calls, whenever their
    /// answers are awaited.
    pub(crate) fn send(&self, message: RouteNetlinkMessage, flags: u16) -> Answer {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        Answer(self.handle.clone().request(request).map(StreamExt::boxed).map_err(into_io))
    }

    /// Lists what the kernel has that the request asks for.
    pub(crate) async fn dump(&self, request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(request);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = self.handle.clone().request(request).map_err(into_io)?;
        let mut listed = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => listed.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                _ => {}
            }
        }
        Ok(listed)
    }
}

/// The answer to come of one request.
pub(crate) struct Answer(
    io::Result<futures::stream::BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>>,
);

impl Answer {
    pub(crate) async fn wait(self) -> io::Result<()> {
        let mut answers = self.0?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                _ => {}
            }
        }
        Ok(())
    }
}

fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(error) => error.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
