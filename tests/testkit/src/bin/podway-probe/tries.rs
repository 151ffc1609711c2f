//! One try: a new socket, one answer or one error.

use std::io::{self, BufRead, BufReader, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use podway_testkit::{Answer, Failure, Transport};

use crate::greeting::Greeting;

/// The longest greeting.
pub(crate) const DATAGRAM: usize = 2048;

/// What to reach, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) transport: Transport,
    pub(crate) address: SocketAddr,
    pub(crate) timeout: Duration,
    pub(crate) unconnected: bool,
}

/// A server's greeting and the address that the client saw it come from.
pub(crate) type Reply = (Greeting, SocketAddr);

impl Target {
    /// Tries once. `start` is when the series began.
    pub(crate) fn try_once(&self, start: Instant) -> Answer {
        let began = Instant::now();
        let reply = match self.transport {
            Transport::Tcp => self.connect().map(|(_, reply)| reply),
            Transport::Udp => self.socket().and_then(|socket| self.ask(&socket)),
        };
        answer(began.duration_since(start), began.elapsed(), reply.map_err(|error| failure(&error)))
    }

    /// Opens a connection and reads the greeting.
    pub(crate) fn connect(&self) -> io::Result<(BufReader<TcpStream>, Reply)> {
        let began = Instant::now();
        let connection = TcpStream::connect_timeout(&self.address, self.timeout)?;
        connection.set_nodelay(true)?;
        let left = self.timeout.saturating_sub(began.elapsed());
        connection.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let remote = connection.peer_addr()?;
        let mut reader = BufReader::new(connection);
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let greeting = serde_json::from_str(&line)?;
        Ok((reader, (greeting, remote)))
    }

    /// Opens a UDP socket, connected unless told otherwise.
    pub(crate) fn socket(&self) -> io::Result<UdpSocket> {
        let any = match self.address {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any)?;
        if !self.unconnected {
            socket.connect(self.address)?;
        }
        socket.set_read_timeout(Some(self.timeout.max(Duration::from_millis(1))))?;
        Ok(socket)
    }

    /// Sends one datagram.
    pub(crate) fn say(&self, socket: &UdpSocket, text: &str) -> io::Result<()> {
        let sent = if self.unconnected {
            socket.send_to(text.as_bytes(), self.address)
        } else {
            socket.send(text.as_bytes())
        };
        sent.map(drop)
    }

    fn ask(&self, socket: &UdpSocket) -> io::Result<Reply> {
        self.say(socket, "hello\n")?;
        hear(socket)
    }
}

/// Receives one greeting.
pub(crate) fn hear(socket: &UdpSocket) -> io::Result<Reply> {
    let mut buffer = [0; DATAGRAM];
    let (length, seen) = socket.recv_from(&mut buffer)?;
    let remote = socket.peer_addr().unwrap_or(seen);
    Ok((serde_json::from_slice(&buffer[..length])?, remote))
}

/// The answer that reports a try begun `at` after the series and ended `took` later.
pub(crate) fn answer(at: Duration, took: Duration, reply: Result<Reply, Failure>) -> Answer {
    let (at, micros) = (micros(at), micros(took));
    let unknown =
        Answer { ok: false, at, micros, name: None, peer: None, local: None, remote: None, error: None };
    match reply {
        Ok((Greeting { name, peer, local, .. }, remote)) => Answer {
            ok: true,
            name: Some(name),
            peer: Some(peer),
            local: Some(local),
            remote: Some(remote),
            ..unknown
        },
        Err(error) => Answer { error: Some(error), ..unknown },
    }
}

/// What an error of a socket means for a try.
pub(crate) fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::ConnectionRefused => Failure::Refused,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Failure::Timeout,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => Failure::Reset,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Failure::Unreachable,
        ErrorKind::PermissionDenied => Failure::Denied,
        ErrorKind::UnexpectedEof => Failure::Closed,
        _ => Failure::Other(error.to_string()),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
