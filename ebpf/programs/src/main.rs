//! The eBPF programs: Services are translated where a socket connects, before there is a packet.
//!
//! `podway_connect4` and `podway_connect6` run at `connect` of TCP and UDP sockets in the cgroup that they are attached
//! to and its descendants. What they leave alone (unconnected UDP, frontends to be dropped or masqueraded, a table that
//! lags behind) nftables translates below them from the same rows.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod socket;

#[cfg(target_arch = "bpf")]
mod entry {
    use aya_ebpf::macros::cgroup_sock_addr;
    use aya_ebpf::programs::SockAddrContext;

    use crate::connect::connect;
    use crate::socket::{V4, V6};

    /// IPv4 destinations.
    #[cgroup_sock_addr(connect4)]
    pub(crate) fn podway_connect4(ctx: SockAddrContext) -> i32 {
        connect(&V4(ctx)).into()
    }

    /// IPv6 destinations, and the v4-mapped ones of IPv6 sockets.
    #[cgroup_sock_addr(connect6)]
    pub(crate) fn podway_connect6(ctx: SockAddrContext) -> i32 {
        connect(&V6(ctx)).into()
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

/// Unreachable: the build fails when a panic is left in the object.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Only so that the workspace builds on the host.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
