//! The socket address that `connect` was called with: the only place that reads or writes the program's context.
//!
//! Field by field and volatile: the verifier accepts loads and stores of single context fields only, and the compiler
//! would merge them.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::programs::SockAddrContext;
use podway_ebpf_common::{FrontendKey, TCP, Target, UDP, v4_mapped};

/// What a program sees of a socket that is about to connect.
pub(crate) trait Destination {
    /// Where it connects to; `None` for protocols that are not translated.
    fn frontend(&self) -> Option<FrontendKey>;

    /// Makes it connect to `target` instead, which is of the same family.
    fn redirect(&self, target: &Target);
}

/// At `connect4`.
pub(crate) struct V4(pub(crate) SockAddrContext);

/// At `connect6`.
pub(crate) struct V6(pub(crate) SockAddrContext);

impl Destination for V4 {
    #[inline(always)]
    fn frontend(&self) -> Option<FrontendKey> {
        // SAFETY: the kernel passes a context that is valid while the program runs.
        let address = unsafe { read_volatile(&raw const (*self.0.sock_addr).user_ip4) };
        Some(FrontendKey::new(v4_mapped(address.to_ne_bytes()), port(&self.0), protocol(&self.0)?))
    }

    #[inline(always)]
    fn redirect(&self, target: &Target) {
        let [_, _, _, address] = words(target.address());
        // SAFETY: as in `frontend`.
        unsafe { write_volatile(&raw mut (*self.0.sock_addr).user_ip4, address) };
        set_port(&self.0, target.port());
    }
}

impl Destination for V6 {
    #[inline(always)]
    fn frontend(&self) -> Option<FrontendKey> {
        let ctx = self.0.sock_addr;
        // SAFETY: the kernel passes a context that is valid while the program runs.
        let [a, b, c, d] = unsafe {
            [
                read_volatile(&raw const (*ctx).user_ip6[0]),
                read_volatile(&raw const (*ctx).user_ip6[1]),
                read_volatile(&raw const (*ctx).user_ip6[2]),
                read_volatile(&raw const (*ctx).user_ip6[3]),
            ]
        };
        Some(FrontendKey::new(bytes([a, b, c, d]), port(&self.0), protocol(&self.0)?))
    }

    #[inline(always)]
    fn redirect(&self, target: &Target) {
        let ctx = self.0.sock_addr;
        let [a, b, c, d] = words(target.address());
        // SAFETY: as in `frontend`.
        unsafe {
            write_volatile(&raw mut (*ctx).user_ip6[0], a);
            write_volatile(&raw mut (*ctx).user_ip6[1], b);
            write_volatile(&raw mut (*ctx).user_ip6[2], c);
            write_volatile(&raw mut (*ctx).user_ip6[3], d);
        }
        set_port(&self.0, target.port());
    }
}

/// Compared as a whole word: MPTCP's number is 262, and its low byte is TCP's.
#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> Option<u8> {
    const TCP_WORD: u32 = TCP as u32;
    const UDP_WORD: u32 = UDP as u32;
    // SAFETY: the kernel passes a context that is valid while the program runs.
    match unsafe { read_volatile(&raw const (*ctx.sock_addr).protocol) } {
        TCP_WORD => Some(TCP),
        UDP_WORD => Some(UDP),
        _ => None,
    }
}

/// The port fills the first two bytes of the context's word.
#[inline(always)]
fn port(ctx: &SockAddrContext) -> [u8; 2] {
    // SAFETY: the kernel passes a context that is valid while the program runs.
    let [high, low, _, _] = unsafe { read_volatile(&raw const (*ctx.sock_addr).user_port) }.to_ne_bytes();
    [high, low]
}

#[inline(always)]
fn set_port(ctx: &SockAddrContext, [high, low]: [u8; 2]) {
    let word = u32::from_ne_bytes([high, low, 0, 0]);
    // SAFETY: the kernel passes a context that is valid while the program runs.
    unsafe { write_volatile(&raw mut (*ctx.sock_addr).user_port, word) };
}

#[inline(always)]
fn bytes(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: arrays of the same size, made of integers.
    unsafe { core::mem::transmute(words) }
}

#[inline(always)]
fn words(bytes: [u8; 16]) -> [u32; 4] {
    // SAFETY: as in `bytes`.
    unsafe { core::mem::transmute(bytes) }
}
