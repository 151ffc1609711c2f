//! Where traffic for a Service port arrives, and what becomes of it.

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// Address, port and protocol that a client connects to.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendKey {
    address: [u8; 16],
    port: [u8; 2],
    protocol: u8,
    padding: u8,
}

impl FrontendKey {
    /// The frontend `address`:`port`, both big-endian, for an IP protocol number.
    pub const fn new(address: [u8; 16], port: [u8; 2], protocol: u8) -> Self {
        Self { address, port, protocol, padding: 0 }
    }

    /// The address, IPv4 as v4-mapped.
    pub const fn address(&self) -> [u8; 16] {
        self.address
    }

    /// The port, big-endian.
    pub const fn port(&self) -> [u8; 2] {
        self.port
    }

    /// The IP protocol number.
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }
}

/// What happens to a new connection to a frontend.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrontendValue {
    targets: u32,
    verdict: u8,
    masquerade: u8,
    padding: [u8; 2],
}

impl FrontendValue {
    /// A frontend whose slots 0 to `targets` - 1 are filled.
    pub const fn balance(targets: u32, masquerade: Masquerade) -> Self {
        Self { targets, verdict: Verdict::Balance as u8, masquerade: masquerade as u8, padding: [0; 2] }
    }

    /// A frontend without slots.
    pub const fn without_targets(verdict: Verdict) -> Self {
        Self { targets: 0, verdict: verdict as u8, masquerade: Masquerade::Never as u8, padding: [0; 2] }
    }

    /// The number of slots.
    pub const fn targets(&self) -> u32 {
        self.targets
    }

    /// The verdict; an unknown number is the one that changes nothing.
    pub const fn verdict(&self) -> Verdict {
        match self.verdict {
            0 => Verdict::Balance,
            1 => Verdict::Reject,
            _ => Verdict::Drop,
        }
    }

    /// Whose source address is to be replaced.
    pub const fn masquerade(&self) -> Masquerade {
        match self.masquerade {
            0 => Masquerade::Never,
            1 => Masquerade::UnlessPod,
            _ => Masquerade::Always,
        }
    }

    /// The slot that a uniformly random number falls on; `None` without targets.
    pub const fn slot(&self, random: u32) -> Option<u32> {
        random.checked_rem(self.targets)
    }
}

/// What happens to a new connection.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to one of the targets.
    Balance = 0,
    /// `connect` fails with `ECONNREFUSED`.
    Reject = 1,
    /// It goes out as it is, and nftables drops it: an error code at `connect` would be an answer.
    Drop = 2,
}

/// Whose source address is to be replaced. A socket has none yet at `connect`: the route to the target decides it.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masquerade {
    /// Nobody's.
    Never = 0,
    /// Everybody's but the pods'; what is connected on this node gets this node's address anyhow.
    UnlessPod = 1,
    /// Everybody's: left to nftables.
    Always = 2,
}

const _: () = {
    assert!(size_of::<FrontendKey>() == 20 && align_of::<FrontendKey>() == 4);
    assert!(size_of::<FrontendValue>() == 8);
};

// SAFETY: repr(C) without implicit padding, made of integers; the loader hands out every bit pattern the kernel holds.
#[cfg(feature = "user")]
unsafe impl aya::Pod for FrontendKey {}
// SAFETY: as above; the enums are stored as plain bytes, so that no bit pattern is invalid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for FrontendValue {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_is_met_equally_often() {
        let value = FrontendValue::balance(3, Masquerade::Never);
        let mut met = [0; 3];
        for random in 0..300 {
            met[value.slot(random).unwrap() as usize] += 1;
        }
        assert_eq!(met, [100; 3]);
        assert_eq!(FrontendValue::without_targets(Verdict::Reject).slot(7), None);
    }

    #[test]
    fn verdicts_and_masquerades_survive_their_numbers() {
        for verdict in [Verdict::Balance, Verdict::Reject, Verdict::Drop] {
            assert_eq!(FrontendValue::without_targets(verdict).verdict(), verdict);
        }
        for masquerade in [Masquerade::Never, Masquerade::UnlessPod, Masquerade::Always] {
            assert_eq!(FrontendValue::balance(1, masquerade).masquerade(), masquerade);
        }
    }
}
