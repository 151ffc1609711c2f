//! The endpoints behind a frontend.

use crate::FrontendKey;

/// One of a frontend's slots.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotKey {
    frontend: FrontendKey,
    slot: u32,
}

impl SlotKey {
    /// The slot number `slot`, counted from 0, of `frontend`.
    pub const fn new(frontend: FrontendKey, slot: u32) -> Self {
        Self { frontend, slot }
    }

    /// Whose slot it is.
    pub const fn frontend(&self) -> FrontendKey {
        self.frontend
    }

    /// Its number, counted from 0.
    pub const fn slot(&self) -> u32 {
        self.slot
    }
}

/// Address and port of an endpoint, always of its frontend's family.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    address: [u8; 16],
    port: [u8; 2],
    padding: [u8; 2],
}

impl Target {
    /// The endpoint `address`:`port`, both big-endian.
    pub const fn new(address: [u8; 16], port: [u8; 2]) -> Self {
        Self { address, port, padding: [0; 2] }
    }

    /// The address, IPv4 as v4-mapped.
    pub const fn address(&self) -> [u8; 16] {
        self.address
    }

    /// The port, big-endian.
    pub const fn port(&self) -> [u8; 2] {
        self.port
    }
}

const _: () = {
    assert!(size_of::<SlotKey>() == 24);
    assert!(size_of::<Target>() == 20 && align_of::<Target>() == 4);
};

// SAFETY: repr(C) without implicit padding, made of integers: every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for SlotKey {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Target {}
