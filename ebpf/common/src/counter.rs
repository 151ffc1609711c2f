//! What the programs count.

/// Index into the per-CPU array of counters.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// Connections sent to a target.
    Translated = 0,
    /// Connections refused.
    Rejected = 1,
    /// Connections whose slot was missing, however often it was looked for; nftables translated them instead.
    MissedSlot = 2,
}

impl Counter {
    /// The length of the array.
    pub const COUNT: u32 = 3;
}
