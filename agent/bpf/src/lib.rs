//! Kernel: loads, pins and feeds the eBPF programs, which translate Services where a socket connects.
//!
//! Of the rows only [`podway_proxy::Frontend`]s and their pools matter here. The nftables tables are loaded as well:
//! they catch what sockets do not, such as unconnected UDP and traffic that is only forwarded.
//!
//! Maps and links are pinned, so that a stopped or restarted daemon leaves translation working.

mod bpffs;
mod cgroup;
mod convert;
mod dataplane;
mod error;
mod link;
mod load;
mod maps;
mod sys;

pub use cgroup::cgroup2_root;
pub use dataplane::{BpfDataplane, Settings};
pub use error::Error;
pub use maps::Counters;

/// Where maps and links are pinned unless configured otherwise. Nodes that share a BPF filesystem need one each.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/podway";
