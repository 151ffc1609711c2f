//! nftables for the pod network: masquerade, and other programs' forward chains kept open for pods (contract N10).

use std::collections::BTreeSet;

use anyhow::Result;
use ipnet::IpNet;
use podway_nftables::{
    ChainName, Damage, ForwardProblem, Forwarding, Network, NetworkRows, NftProcess, Ports, Watch,
};
use podway_overlay::Masquerade;
use tracing::{info, warn};

use crate::config::{Config, NetworkConfig};

/// Both, with an eye on what others do to them.
pub(super) struct Tables {
    masquerade: Network,
    forwarding: Forwarding,
    watch: Watch,
    /// What the forward chains were opened for; `None` if they may have changed since.
    opened_for: Option<Vec<IpNet>>,
    opened: BTreeSet<ChainName>,
    problems: BTreeSet<ForwardProblem>,
}

impl Tables {
    /// Takes over what stands.
    pub(super) async fn adopt(config: &Config, nft: NftProcess) -> Result<Self> {
        Ok(Self {
            // Before the first look, so that nothing happens in between.
            watch: Watch::open(&nft)?,
            masquerade: Network::adopt(nft.clone(), config.services.mark()).await?,
            forwarding: Forwarding::new(nft),
            opened_for: None,
            opened: BTreeSet::new(),
            problems: BTreeSet::new(),
        })
    }

    /// Waits until somebody else has touched what is ours; then [`Self::invalidate`] is to be called, when it is time.
    /// May be dropped and called again.
    pub(super) async fn damaged(&mut self) {
        loop {
            let damage: Damage = self.watch.next().await;
            if damage.network || self.forwarding.is_touched_by(&damage) {
                return;
            }
        }
    }

    /// The next write looks at everything anew.
    pub(super) fn invalidate(&mut self) {
        self.masquerade.invalidate();
        self.opened_for = None;
    }

    /// Brings both to what the configuration and this node's subnets ask for; returns how many elements and rules were
    /// written. Without known subnets what stands is left.
    pub(super) async fn write(&mut self, network: &NetworkConfig, pods: Option<Masquerade>) -> Result<usize> {
        let mut written = 0;
        if let Some(rows) = rows(network, pods.as_ref()) {
            written += self.masquerade.replace(&rows).await?;
        }
        let Some(Masquerade { pod_networks, .. }) = pods else { return Ok(written) };
        let pod_networks = if network.forward_accept { pod_networks } else { Vec::new() };
        if self.opened_for.as_ref() != Some(&pod_networks) {
            written += self.open(&pod_networks).await?;
            self.opened_for = Some(pod_networks);
        }
        Ok(written)
    }

    /// Forward chains that the operator has to open.
    pub(super) fn problems(&self) -> &BTreeSet<ForwardProblem> {
        &self.problems
    }

    async fn open(&mut self, pod_networks: &[IpNet]) -> Result<usize> {
        let report = self.forwarding.apply(pod_networks).await?;
        for chain in report.opened.difference(&self.opened) {
            info!("pods' packets are let through forward chain {chain}, which would drop them");
        }
        for problem in report.problems.difference(&self.problems) {
            warn!("{problem}");
        }
        for problem in self.problems.difference(&report.problems) {
            info!("no longer: {problem}");
        }
        (self.opened, self.problems) = (report.opened, report.problems);
        Ok(report.written)
    }
}

fn rows(network: &NetworkConfig, pods: Option<&Masquerade>) -> Option<NetworkRows> {
    if !network.masquerade {
        return Some(NetworkRows::default());
    }
    let Masquerade { pod_networks, own_subnets } = pods?.clone();
    let non_masquerade = network.non_masquerade_cidrs.clone();
    let ports = if network.masquerade_random { Ports::Random } else { Ports::Kept };
    Some(NetworkRows { pod_networks, own_subnets, non_masquerade, ports })
}
