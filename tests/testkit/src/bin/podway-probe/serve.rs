//! The servers: each family has a listener of its own, so that no IPv4 address shows up mapped into IPv6.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, listen, setsockopt, socket, sockopt,
};

use crate::greeting::Greeting;
use crate::udp_server;

/// Connections that wait to be accepted; floods come in bursts.
const BACKLOG: i32 = 1024;

/// Serves until the process is ended.
pub(crate) fn serve(name: &str, tcp: &[u16], udp: &[u16]) -> Result<()> {
    let mut servers = Vec::new();
    for port in tcp {
        let ipv4 = TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port));
        for listener in [ipv4.with_context(|| format!("listen on TCP port {port}"))?, listen_ipv6(*port)?] {
            let name = name.to_owned();
            servers.push(thread::spawn(move || accept(&name, &listener)));
        }
    }
    for port in udp {
        for server in udp_server::open(*port)? {
            let name = name.to_owned();
            servers.push(thread::spawn(move || server.answer(&name)));
        }
    }
    println!("serving {name}, TCP {tcp:?}, UDP {udp:?}");
    for server in servers {
        server.join().map_err(|_| anyhow::anyhow!("a server panicked"))??;
    }
    Ok(())
}

/// A socket bound to a port of every IPv6 address, and of no IPv4 address.
pub(crate) fn bind_ipv6(kind: SockType, port: u16) -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Inet6, kind, SockFlag::SOCK_CLOEXEC, None).context("open a socket")?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &true).context("set IPV6_V6ONLY")?;
    setsockopt(&socket, sockopt::ReuseAddr, &true).context("set SO_REUSEADDR")?;
    let address = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0));
    bind(socket.as_raw_fd(), &address).with_context(|| format!("bind [::]:{port}"))?;
    Ok(socket)
}

fn listen_ipv6(port: u16) -> Result<TcpListener> {
    let socket = bind_ipv6(SockType::Stream, port)?;
    listen(&socket, Backlog::new(BACKLOG)?).with_context(|| format!("listen on TCP port {port}"))?;
    Ok(TcpListener::from(socket))
}

fn accept(name: &str, listener: &TcpListener) -> Result<()> {
    loop {
        let (connection, peer) = listener.accept().context("accept a connection")?;
        let name = name.to_owned();
        // A client that goes away ends its own connection only.
        thread::spawn(move || answer(name, peer, connection));
    }
}

fn answer(name: String, peer: SocketAddr, mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let local = connection.local_addr()?;
    connection.write_all(Greeting { name, peer, local, echo: None }.line()?.as_bytes())?;
    let mut lines = BufReader::new(connection.try_clone()?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        connection.write_all(&line)?;
        line.clear();
    }
    Ok(())
}
