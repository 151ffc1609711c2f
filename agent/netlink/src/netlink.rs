//! The one door to the kernel.

use std::io;
use std::sync::Arc;

use futures::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use podway_overlay::{ExternalInterface, Host, Observed, Op, Settings, Sought};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use tokio::sync::Mutex;

use crate::asked::Asked;
use crate::batch::Batches;
use crate::error::Error;
use crate::ethtool::Ethtool;
use crate::external::{self, InterfaceChoice};
use crate::render::Request;
use crate::run::{self, Report};
use crate::{host, observe};

/// A netlink socket in the network namespace in which it was opened.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
    batches: Arc<Mutex<Batches>>,
    ethtool: Option<Arc<Ethtool>>,
    port: u32,
    asked: Asked,
}

impl Netlink {
    /// Opens the socket in the caller's network namespace. Must be called in a tokio runtime, which carries the
    /// connection as a task of its own until the last clone is dropped.
    pub fn open() -> Result<Self, Error> {
        // Strict: the kernel filters dumps instead of handing over every route of the machine (Linux 4.20).
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check().map_err(Error::Open)?;
        tokio::spawn(connection);
        let batches = Batches::open().map_err(Error::Open)?;
        Ok(Self {
            handle,
            port: batches.port(),
            batches: Arc::new(Mutex::new(batches)),
            asked: Asked::default(),
            ethtool: Ethtool::open().ok().map(Arc::new),
        })
    }

    /// All that this machine contributes to the pod network: the chosen interface, the addresses to publish, its
    /// routes, the MACs of links that stand.
    pub async fn host(&self, choice: &InterfaceChoice, settings: &Settings) -> Result<Host, Error> {
        host::observe(self, choice, settings).await
    }

    /// Finds the interface that reaches the other nodes (contract N8).
    ///
    /// Of its addresses the best of each family: global before link-local, permanent before dynamic, lasting before
    /// temporary, the first otherwise; never a deprecated one.
    pub async fn external_interface(&self, choice: &InterfaceChoice) -> Result<ExternalInterface, Error> {
        external::resolve(choice, &external::look(self, choice).await?)
    }

    /// Reads what of the pod network is in the kernel: links with our mark or these names and what is on them,
    /// routes of our protocol number, and the kernel settings that matter.
    pub async fn observe(&self, sought: &Sought) -> Result<Observed, Error> {
        observe::observe(self, sought).await
    }

    /// Carries out steps in their order. A step that fails does not stop those that have nothing to do with it; see
    /// [`Report`].
    pub async fn run(&self, ops: &[Op]) -> Report {
        self.asked.note(ops);
        run::run(self, ops).await
    }

    /// Removes our routes and the links with our mark, and nothing else (contract N20).
    pub async fn remove_all(&self) -> Result<Report, Error> {
        let observed = self.observe(&Sought::default()).await?;
        Ok(self.run(&podway_overlay::removal(&observed)).await)
    }

    /// The port by which notifications name the socket that asks for changes.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    pub(crate) fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Sends requests together, in their order, and returns what the kernel says to each. Of many there may be one
    /// send for each `LARGEST` of `batch`.
    pub(crate) async fn send(&self, requests: Vec<Request>) -> io::Result<Vec<io::Result<()>>> {
        self.batches.lock().await.send(requests).await
    }

    /// Checksum offload of links, where the kernel can be asked for it.
    pub(crate) fn ethtool(&self) -> Option<&Ethtool> {
        self.ethtool.as_deref()
    }

    /// Asks for one thing.
    pub(crate) async fn ask(&self, request: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        Ok(self.list(request, NLM_F_REQUEST | NLM_F_ACK).await?.into_iter().next())
    }

    /// Lists what the kernel has that the request asks for.
    pub(crate) async fn dump(&self, request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.list(request, NLM_F_REQUEST | NLM_F_DUMP).await
    }

    async fn list(&self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(request);
        request.header.flags = flags;
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

fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(error) => error.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
