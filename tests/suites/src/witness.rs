//! A counter beside podway's own tables, as another program on the node might have it.

use anyhow::{Context, Result};
use podway_testkit::Node;
use serde_json::Value;

/// Counts packets to Service addresses that come from pods or processes of a node, before nftables translates them.
/// What an eBPF program translated at connect() never counts.
#[derive(Debug)]
pub struct Witness {
    node: Node,
}

impl Witness {
    /// Starts to count at zero.
    pub fn install(node: &Node) -> Result<Self> {
        let rules = "ip daddr 10.96.0.0/16 counter name to-services\n  ip6 daddr fd96::/64 counter name to-services\n";
        let chain =
            |hook| format!(" chain {hook} {{\n  type filter hook {hook} priority raw;\n  {rules} }}\n");
        let table = format!(
            "table inet witness {{\n counter to-services {{}}\n{}{}}}\n",
            chain("prerouting"),
            chain("output")
        );
        node.command("nft").args(["--file", "-"]).stdin(table).run()?;
        Ok(Self { node: node.clone() })
    }

    /// How many packets so far.
    pub fn packets(&self) -> Result<u64> {
        let nft =
            self.node.command("nft").args(["--json", "list", "counter", "inet", "witness", "to-services"]);
        let listed: Value = serde_json::from_str(&nft.run()?).context("read what nft printed")?;
        let objects = listed["nftables"].as_array().context("nft printed no list")?;
        let packets = objects.iter().find_map(|object| object["counter"]["packets"].as_u64());
        packets.context("nft printed no counter")
    }
}
