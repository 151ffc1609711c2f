//! The only door to rtnetlink: questions and requests on a socket, one after the other.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::error::Error;

/// The kernel answers dumps in pieces of up to 32 KiB.
const BUFFER: usize = 64 * 1024;

/// A change with the words for an error: "refused to add the route to ...".
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) what: String,
    pub(crate) message: RouteNetlinkMessage,
    /// Beside `NLM_F_REQUEST` and `NLM_F_ACK`.
    pub(crate) flags: u16,
}

/// A socket in the network namespace that it was opened in.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    pub(crate) fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(Error::kernel("open a netlink socket"))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Sends all steps at once, and fails with the first that the kernel refused. It tries the others all the same.
    pub(crate) fn run(&mut self, steps: Vec<Step>) -> Result<(), Error> {
        let first = self.sequence + 1;
        let mut bytes = Vec::new();
        let mut words = Vec::with_capacity(steps.len());
        for step in steps {
            self.append(&mut bytes, step.message, step.flags | NLM_F_ACK);
            words.push(step.what);
        }
        self.send(&bytes)?;
        let mut refused: Option<(usize, io::Error)> = None;
        let mut open = words.len();
        while open > 0 {
            for message in self.receive()? {
                let NetlinkPayload::Error(answer) = message.payload else { continue };
                let Some(index) = message.header.sequence_number.checked_sub(first) else { continue };
                open -= 1;
                let index = index as usize;
                if answer.code.is_some() && refused.as_ref().is_none_or(|(earlier, _)| index < *earlier) {
                    refused = Some((index, answer.to_io()));
                }
            }
        }
        match refused {
            Some((index, cause)) => Err(Error::kernel(words.swap_remove(index))(cause)),
            None => Ok(()),
        }
    }

    /// Asks for one object; `None` if the kernel has none.
    pub(crate) fn get(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        self.ask(message, 0)?;
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(found) => return Ok(Some(found)),
                    NetlinkPayload::Error(answer) => {
                        let cause = answer.to_io();
                        return if is_missing(&cause) { Ok(None) } else { Err(Error::kernel(what)(cause)) };
                    }
                    _ => {}
                }
            }
        }
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.ask(message, NLM_F_DUMP)?;
        let mut all = Vec::new();
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(found) => all.push(found),
                    NetlinkPayload::Done(_) => return Ok(all),
                    NetlinkPayload::Error(answer) => return Err(Error::kernel(what)(answer.to_io())),
                    _ => {}
                }
            }
        }
    }

    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, message, flags);
        self.send(&bytes)
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.sequence_number = self.sequence;
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = bytes.len();
        // Each message begins at a multiple of four.
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..start + message.buffer_len()]);
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        self.socket.send(bytes, 0).map(|_| ()).map_err(Error::kernel("take a netlink request"))
    }

    fn receive(&mut self) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, Error> {
        self.buffer.clear();
        let received = self.socket.recv(&mut self.buffer, 0);
        received.map_err(Error::kernel("answer a netlink request"))?;
        let mut messages = Vec::new();
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest);
            let message = message.map_err(|error| Error::Decode {
                what: "an answer of the kernel".to_owned(),
                cause: error.to_string(),
            })?;
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
    }
}

/// Whether the kernel says that there is no such thing.
pub(crate) fn is_missing(error: &io::Error) -> bool {
    use nix::errno::Errno;
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL)
    )
}
