//! What the pod network has in nftables: masquerade, and rules in other programs' forward chains (contract N10).

use std::collections::BTreeSet;

use anyhow::Result;
use ipnet::IpNet;
use podway_nftables::{ForwardProblem, Forwarding, Network, NetworkRows, NftProcess, Watch};
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::disturbance::Disturbance;

/// The network half's nftables, and its ear for what others do to them.
pub(crate) struct Firewall {
    masquerade: Network,
    forwarding: Forwarding,
    disturbance: Disturbance,
    /// The networks that pass, as last applied; `None` when others may have changed that.
    passing: Option<Vec<IpNet>>,
    problems: BTreeSet<ForwardProblem>,
}

impl Firewall {
    /// Listens from now on, and writes nothing yet.
    pub(crate) async fn open(config: &Config) -> Result<Self> {
        let nft = NftProcess::default();
        Ok(Self {
            disturbance: Disturbance::new(Watch::open(&nft)?),
            masquerade: Network::adopt(nft.clone(), config.services.mark()).await?,
            forwarding: Forwarding::new(nft),
            passing: None,
            problems: BTreeSet::new(),
        })
    }

    /// Waits until somebody else changed what [`Firewall::program`] is to repair.
    pub(crate) async fn disturbed(&mut self) {
        let forwarding = &self.forwarding;
        let concerns = |damage: &_| forwarding.is_touched_by(damage);
        let damage = self.disturbance.next(|damage| damage.network || concerns(damage)).await;
        if damage.network {
            info!("another program changed the pod network's nftables: they are repaired");
            self.masquerade.invalidate();
        }
        if self.forwarding.is_touched_by(&damage) {
            debug!("another program's forward chains changed");
            self.passing = None;
        }
    }

    /// Makes nftables masquerade by these rows and let these networks pass; returns the number of steps.
    pub(crate) async fn program(&mut self, rows: &NetworkRows, passing: Vec<IpNet>) -> Result<usize> {
        let mut steps = self.masquerade.replace(rows).await?;
        if self.passing.as_ref() != Some(&passing) {
            let report = self.forwarding.apply(&passing).await?;
            steps += report.written;
            for chain in &report.opened {
                debug!(%chain, "pods pass this forward chain by rules of podway's");
            }
            self.report(report.problems);
            self.passing = Some(passing);
        }
        Ok(steps)
    }

    fn report(&mut self, problems: BTreeSet<ForwardProblem>) {
        for problem in problems.difference(&self.problems) {
            warn!("{problem}");
        }
        for problem in self.problems.difference(&problems) {
            info!("no longer: {problem}");
        }
        self.problems = problems;
    }
}
