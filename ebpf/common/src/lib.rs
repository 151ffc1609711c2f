//! Keys and values of the eBPF maps, shared by the programs and their loader.
//!
//! Addresses are 16 bytes, IPv4 as v4-mapped IPv6 (`::ffff:a.b.c.d`), so that one table serves both families and a
//! v4-mapped destination on an IPv6 socket finds the IPv4 Service by itself. Addresses and ports are big-endian, as in
//! the kernel's socket addresses. Padding is explicit and zero: the kernel compares keys byte by byte.

#![no_std]

mod counter;
mod frontend;
mod target;

pub use counter::Counter;
pub use frontend::{FrontendKey, FrontendValue, Masquerade, TCP, UDP, Verdict};
pub use target::{SlotKey, Target};

/// Number of the maps' layout, part of the path that they are pinned under. Raise it with every change of a key, a
/// value or their meaning: the loader then builds new maps beside the old ones instead of misreading them.
pub const SCHEMA: u32 = 1;

/// The most frontends. The kernel takes 16 bytes for each of these at once, and about 96 more for one that exists.
pub const MAX_FRONTENDS: u32 = 1 << 16;

/// The most slots, at the same cost as frontends: enough for 10,000 Services with two ports and 10 endpoints each.
pub const MAX_SLOTS: u32 = 1 << 18;

/// An IPv4 address as it is stored.
pub const fn v4_mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}
