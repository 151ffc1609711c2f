//! Whether this process may program the kernel.

use anyhow::{Context, Result, bail};

/// Bit of CAP_NET_ADMIN (include/uapi/linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;

/// Fails, saying what is missing, unless links, routes and nftables may be changed.
pub(crate) fn require_net_admin() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    if !has_capability(&status, CAP_NET_ADMIN) {
        bail!("needs the capability CAP_NET_ADMIN to program the network: run it as root");
    }
    Ok(())
}

fn has_capability(status: &str, bit: u32) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << bit) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read() {
        assert!(has_capability("Name:\tpodway\nCapEff:\t000001ffffffffff\n", CAP_NET_ADMIN));
        assert!(has_capability("CapEff:\t0000000000001000\n", CAP_NET_ADMIN));
        assert!(!has_capability("CapPrm:\t0000000000001000\nCapEff:\t0000000000000000\n", CAP_NET_ADMIN));
        assert!(!has_capability("", CAP_NET_ADMIN));
    }
}
