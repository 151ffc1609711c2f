//! UDP servers that answer from the very address a datagram was sent to, as a server on a host of many addresses must.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use nix::cmsg_space;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockType, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};

use crate::greeting::Greeting;
use crate::serve::bind_ipv6;

/// A server on one port of one family.
pub(crate) struct UdpServer {
    socket: UdpSocket,
    port: u16,
}

/// Servers on a port of every address, one for each family.
pub(crate) fn open(port: u16) -> Result<[UdpServer; 2]> {
    let ipv4 =
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("bind UDP port {port}"))?;
    setsockopt(&ipv4, sockopt::Ipv4PacketInfo, &true).context("set IP_PKTINFO")?;
    let ipv6 = UdpSocket::from(bind_ipv6(SockType::Datagram, port)?);
    setsockopt(&ipv6, sockopt::Ipv6RecvPacketInfo, &true).context("set IPV6_RECVPKTINFO")?;
    Ok([ipv4, ipv6].map(|socket| UdpServer { socket, port }))
}

impl UdpServer {
    /// Answers every datagram; a reply that cannot be sent is the client's loss only.
    pub(crate) fn answer(&self, name: &str) -> Result<()> {
        loop {
            let (text, peer, local) = self.receive()?;
            let local_address = SocketAddr::new(local, self.port);
            let greeting = Greeting { name: name.to_owned(), peer, local: local_address, echo: Some(text) };
            if let Err(error) = self.reply(&greeting.line()?, peer, local) {
                eprintln!("no reply to {peer}: {error:#}");
            }
        }
    }

    /// The next datagram: its text, where it came from, and the address it was sent to.
    fn receive(&self) -> Result<(String, SocketAddr, IpAddr)> {
        let mut buffer = [0; 2048];
        let mut control = cmsg_space!(in6_pktinfo);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<SockaddrStorage>(
            self.socket.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::empty(),
        )
        .context("receive a datagram")?;
        let peer =
            message.address.as_ref().and_then(socket_address).context("a datagram without a source")?;
        let local =
            message.cmsgs()?.find_map(destination).context("a datagram without packet information")?;
        let length = message.bytes;
        Ok((String::from_utf8_lossy(&buffer[..length]).trim().to_owned(), peer, local))
    }

    fn reply(&self, line: &str, peer: SocketAddr, from: IpAddr) -> Result<()> {
        let slices = [IoSlice::new(line.as_bytes())];
        let socket = self.socket.as_raw_fd();
        let peer = SockaddrStorage::from(peer);
        let send = |control| sendmsg(socket, &slices, &[control], MsgFlags::empty(), Some(&peer));
        let sent = match from {
            IpAddr::V4(address) => {
                let address = in_addr { s_addr: u32::from_ne_bytes(address.octets()) };
                let info =
                    in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: in_addr { s_addr: 0 } };
                send(ControlMessage::Ipv4PacketInfo(&info))
            }
            IpAddr::V6(address) => {
                let info = in6_pktinfo { ipi6_addr: in6_addr { s6_addr: address.octets() }, ipi6_ifindex: 0 };
                send(ControlMessage::Ipv6PacketInfo(&info))
            }
        };
        if sent? != line.len() {
            bail!("sent in part");
        }
        Ok(())
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let ipv4 = address.as_sockaddr_in().map(|address| SocketAddr::from((address.ip(), address.port())));
    ipv4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::from((address.ip(), address.port()))))
}

fn destination(message: ControlMessageOwned) -> Option<IpAddr> {
    match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into())
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into()),
        _ => None,
    }
}
