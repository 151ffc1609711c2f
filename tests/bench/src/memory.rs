//! How much memory a process holds, as the kernel counts it.

use std::fs;

use anyhow::{Context, Result};

/// A process's memory at one moment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// VmRSS: every page of it that is in memory.
    pub(crate) resident: u64,
    /// RssAnon: heap and stacks, the part that grows with the cluster.
    pub(crate) anonymous: u64,
    /// Pss: resident, where a page that n processes share counts as 1/n.
    pub(crate) proportional: u64,
    /// VmHWM: the most that was ever resident.
    pub(crate) peak: u64,
}

impl Memory {
    /// Reads the counters of the process `id`.
    pub(crate) fn of(id: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{id}/{file}");
            fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        Self::parse(&read("status")?, &read("smaps_rollup")?)
    }

    /// Lines as in proc_pid_status(5) and proc_pid_smaps(5).
    fn parse(status: &str, smaps_rollup: &str) -> Result<Self> {
        Ok(Self {
            resident: bytes(status, "VmRSS:")?,
            anonymous: bytes(status, "RssAnon:")?,
            proportional: bytes(smaps_rollup, "Pss:")?,
            peak: bytes(status, "VmHWM:")?,
        })
    }
}

fn bytes(text: &str, name: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
    let kibibytes: u64 = value.and_then(|value| value.parse().ok()).with_context(|| format!("no {name}"))?;
    Ok(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_in_bytes() {
        let status = "Name:\tpodway\nVmHWM:\t   12 kB\nVmRSS:\t   10 kB\nRssAnon:\t    4 kB\n";
        let memory =
            Memory::parse(status, "5581 7ffe ---p 0 00:00 0 [rollup]\nRss: 10 kB\nPss:    7 kB\n").unwrap();
        let expected = Memory { resident: 10240, anonymous: 4096, proportional: 7168, peak: 12288 };
        assert_eq!(memory, expected);
        assert!(Memory::parse(status, "").unwrap_err().to_string().contains("Pss"));
    }
}
