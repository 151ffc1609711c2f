//! Many requests in one send.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use crate::render::Request;

/// Requests in one send. The kernel answers each that it refuses with less than a kilobyte of its receive buffer, of
/// which a socket has 208 KiB by default.
pub(crate) const LARGEST: usize = 128;

/// A socket for requests that change something.
///
/// The kernel carries out the requests of one send in their order, before the send returns, and tells of those that
/// it refuses by their sequence numbers; only the last is asked to be acknowledged in any case (netlink(7)).
pub(crate) struct Batches {
    socket: TokioSocket,
    port: u32,
    sequence: u32,
}

impl Batches {
    /// In the caller's network namespace and tokio runtime.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let port = socket.socket_mut().bind_auto()?.port_number();
        socket.socket_ref().connect(&SocketAddr::new(0, 0))?;
        // A refusal need not carry the request that it is about.
        socket.socket_ref().set_cap_ack(true)?;
        Ok(Self { socket, port, sequence: 0 })
    }

    /// The port by which notifications name this socket as the one that asked for the change.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// What the kernel says to each of the requests, of which there are at most [`LARGEST`].
    pub(crate) async fn send(&mut self, requests: Vec<Request>) -> io::Result<Vec<io::Result<()>>> {
        let mut answers: Vec<io::Result<()>> = requests.iter().map(|_| Ok(())).collect();
        let Some(last) = answers.len().checked_sub(1) else { return Ok(answers) };
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for (at, (message, flags)) in requests.into_iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let acknowledged = if at == last { NLM_F_ACK } else { 0 };
            append(&mut bytes, message, NLM_F_REQUEST | acknowledged | flags, self.sequence);
        }
        self.socket.send(&bytes).await?;
        loop {
            let (sequence, answer) = self.answer().await?;
            // What is left of a run that was given up has numbers of its own.
            let Some(slot) =
                usize::try_from(sequence.wrapping_sub(first)).ok().and_then(|at| answers.get_mut(at))
            else {
                continue;
            };
            *slot = answer;
            if sequence == self.sequence {
                return Ok(answers);
            }
        }
    }

    async fn answer(&mut self) -> io::Result<(u32, io::Result<()>)> {
        let mut bytes = Vec::with_capacity(8192);
        self.socket.recv(&mut bytes).await?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let result = match answer.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            _ => Ok(()),
        };
        Ok((answer.header.sequence_number, result))
    }
}

impl std::fmt::Debug for Batches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

fn append(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = flags;
    request.header.sequence_number = sequence;
    request.finalize();
    let start = bytes.len();
    // Messages begin at multiples of four.
    bytes.resize((start + request.buffer_len()).next_multiple_of(4), 0);
    request.serialize(&mut bytes[start..]);
}
