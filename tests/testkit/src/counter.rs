//! Counters of packets that cross the underlay's bridge.

use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::claim::check_name;
use crate::namespace::run_with_input;
use crate::site::Site;

/// A counter in the underlay; each packet that a host sends counts once, however many hosts receive it.
#[derive(Debug, Clone)]
pub struct Counter {
    site: Arc<Site>,
    name: String,
}

impl Counter {
    pub(crate) fn install(site: &Arc<Site>, name: &str, expression: &str) -> Result<Self> {
        check_name(name)?;
        let counter = Self { site: site.clone(), name: name.to_owned() };
        let _standing = site.standing()?;
        let table = format!(
            "table bridge testkit {{\n counter {name} {{}}\n chain {name} {{\n  \
             type filter hook prerouting priority 0;\n  {expression} counter name {name}\n }}\n}}\n"
        );
        counter.nft(&["--file", "-"], &table)?;
        Ok(counter)
    }

    /// How many packets have matched so far.
    pub fn packets(&self) -> Result<u64> {
        let listed = self.nft(&["--json", "list", "counter", "bridge", "testkit", &self.name], "")?;
        let listed: Value = serde_json::from_str(&listed).context("read nft's answer")?;
        let counters = listed["nftables"].as_array().context("nft answered no list")?;
        let packets = counters.iter().find_map(|object| object["counter"]["packets"].as_u64());
        packets.with_context(|| format!("nft knows no counter {}", self.name))
    }

    fn nft(&self, arguments: &[&str], input: &str) -> Result<String> {
        let run = || run_with_input(Command::new("nft").args(arguments), input);
        let output = self.site.underlay.enter(run)??;
        if !output.status.success() {
            bail!("nft {}: {}{input}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
