//! What the integration tests and the demo need of the kernel, tried out in a network namespace of its own.

use std::{fs, process::Stdio};

use anyhow::{Result, bail};

use crate::workspace::Workspace;

/// A feature, the kernel options it comes with, and a shell line that succeeds where it is there.
struct Feature {
    name: &'static str,
    options: &'static str,
    probe: &'static str,
}

const FEATURES: [Feature; 6] = [
    Feature {
        name: "veth pairs",
        options: "CONFIG_VETH",
        probe: "ip link add probe0 type veth peer name probe1",
    },
    Feature {
        name: "VXLAN devices",
        options: "CONFIG_VXLAN",
        probe: "ip link add probe0 type vxlan id 1 dstport 8472 nolearning",
    },
    Feature { name: "IPv6", options: "CONFIG_IPV6", probe: "ip -6 address add fd00::1/128 dev lo" },
    Feature {
        name: "nftables with NAT",
        options: "CONFIG_NF_TABLES_INET, CONFIG_NFT_CT, CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NFT_NUMGEN, CONFIG_NFT_REJECT",
        probe: "nft -f - <<'END'
table inet probe {
  chain refuse { reject; }
  chain nat-out { type nat hook postrouting priority srcnat; ct state new masquerade fully-random; }
  chain nat-in { type nat hook prerouting priority dstnat; numgen random mod 2 == 0 dnat ip to 192.0.2.1; }
}
END",
    },
    Feature {
        name: "cgroup v2",
        options: "CONFIG_CGROUPS",
        probe: "grep -q ' - cgroup2 ' /proc/self/mountinfo",
    },
    Feature {
        name: "eBPF on cgroups",
        options: "CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF",
        probe: "test -e /proc/sys/kernel/unprivileged_bpf_disabled",
    },
];

/// Fails with the names of all features that are missing; takes about 50 ms.
pub(crate) fn require_features(workspace: &Workspace) -> Result<()> {
    let mut missing = Vec::new();
    for feature in &FEATURES {
        if !works(workspace, feature.probe)? {
            missing.push(format!("    {} ({})", feature.name, feature.options));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    bail!("the kernel ({}) lacks what podway is tested with:\n{}", release.trim(), missing.join("\n"))
}

/// Whether the line succeeds as root in a fresh network namespace, which goes with it.
fn works(workspace: &Workspace, probe: &str) -> Result<bool> {
    let mut command = workspace.command("unshare");
    command
        .args(["--net", "sh", "-c", probe])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(command.status()?.success())
}
