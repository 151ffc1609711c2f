//! Lets pods' packets through the forward chains of other programs (contract N10).
//!
//! An accept in a chain of our own would not do: a packet must pass every chain on the hook, and a drop in one of them is
//! final. So where a firewall's chain ends in a drop, rules of ours, known by their comment, go directly in front of that
//! drop, behind whatever the chain denies on a condition, and nothing else of it is touched.

mod chain;
mod legacy;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

use self::chain::{Direction, Gate, Pass, Plan, Sort, sort};
use crate::listing::{ListedChain, Listing};
use crate::process::Nft;
use crate::schema::half_of;
use crate::watch::Damage;
use crate::{Error, NftProcess};

/// So many chains are followed from one that may end in a drop; a firewall that needs more is none to be understood.
const FOLLOWED: usize = 32;

/// A chain of nftables; reads `inet firewalld filter_FORWARD`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainName {
    /// Family and name of its table.
    pub table: String,
    /// Its own.
    pub name: String,
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.name)
    }
}

/// What became of the forward chains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ForwardReport {
    /// Rules that were added or removed.
    pub written: usize,
    /// Other programs' chains that would drop pods' packets, and have rules of ours now.
    pub opened: BTreeSet<ChainName>,
    /// Where pods' packets may still be dropped.
    pub problems: BTreeSet<ForwardProblem>,
}

/// A chain that drops pods' packets, and that the operator has to open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum ForwardProblem {
    /// It takes no rule of ours, for instance because its table has an owner.
    #[error("{chain} drops pods' packets and takes no rule ({message}): allow them there: {remedy}")]
    Closed {
        /// The chain.
        chain: ChainName,
        /// nft's word on it.
        message: String,
        /// The commands that open it.
        remedy: String,
    },
    /// It is one of iptables-legacy, which nft does not reach.
    #[error("the FORWARD chain of {program} {certainty} pods' packets: allow them there: {remedy}")]
    Legacy {
        /// `iptables-legacy` or `ip6tables-legacy`.
        program: &'static str,
        /// `drops`, or `may drop` where the program is not there to look.
        certainty: &'static str,
        /// The commands that open it.
        remedy: String,
    },
}

/// Keeps the forward chains of one network namespace open for pods.
#[derive(Debug)]
pub struct Forwarding<N = NftProcess> {
    nft: N,
    /// The chains that decided, at the last look.
    looked_at: Option<BTreeSet<ChainName>>,
}

impl<N: Nft> Forwarding<N> {
    /// Looks at nothing yet.
    pub fn new(nft: N) -> Self {
        Self { nft, looked_at: None }
    }

    /// Whether [`Forwarding::apply`] may find something else than the last time.
    pub fn is_touched_by(&self, damage: &Damage) -> bool {
        let Some(chains) = &self.looked_at else { return true };
        damage.forward || damage.chains.iter().any(|chain| chains.contains(chain))
    }

    /// Puts rules that accept packets from and to these networks into every forward chain of others that would drop
    /// them, directly before it does, and takes away those that are of no use any more. What others deny on a condition
    /// stays denied: ours are moved behind it. Costs a list of all chains, and one of each forward chain.
    pub async fn apply(&mut self, pod_networks: &[IpNet]) -> Result<ForwardReport, Error> {
        self.looked_at = None;
        let passes = Pass::all(pod_networks);
        let mut report = ForwardReport::default();
        let mut looked_at = BTreeSet::new();
        let chains = Listing::read("list chains", &self.nft.list_chains().await?)?;
        for chain in chains.chains().filter(|it| is_forward(it)) {
            match self.open(chain, &passes, &mut looked_at).await {
                Ok(opened) => report.note(name_of(chain), opened),
                // It cannot even be looked at.
                Err(Error::Refused { message, .. }) => {
                    report.problems.extend([closed(chain, &passes, Gate::End, message)])
                }
                Err(error) => return Err(error),
            }
        }
        for (ipv6, program) in [(false, "iptables-legacy"), (true, "ip6tables-legacy")] {
            let listing = self.nft.list_legacy_forward(ipv6).await?;
            report.problems.extend(listing.and_then(|it| legacy::problem(program, ipv6, &it, &passes)));
        }
        self.looked_at = Some(looked_at);
        Ok(report)
    }

    /// Removes the rules that [`Forwarding::apply`] added, and nothing else.
    pub async fn remove_all(nft: N) -> Result<(), Error> {
        let report = Self::new(nft).apply(&[]).await?;
        let refusal = report.problems.into_iter().next();
        refusal
            .map_or(Ok(()), |it| Err(Error::Refused { call: "delete rule".into(), message: it.to_string() }))
    }

    /// The door that this writes through.
    pub fn nft_mut(&mut self) -> &mut N {
        &mut self.nft
    }

    async fn open(
        &mut self,
        chain: &ListedChain,
        passes: &BTreeSet<Pass>,
        looked_at: &mut BTreeSet<ChainName>,
    ) -> Result<Opened, Error> {
        let of_family = |pass: &&Pass| chain.family == "inet" || chain.family == pass.family();
        let passes: BTreeSet<Pass> = passes.iter().filter(of_family).copied().collect();
        let mut attempts = 0;
        loop {
            let table = self.table_handle(&name_of(chain)).await?;
            let (gate, plan) = self.look(chain, &passes, looked_at).await?;
            attempts += 1;
            match self.carry_out(&name_of(chain), table, &plan).await {
                Ok(()) => {
                    let needed = gate != Gate::Open && !passes.is_empty();
                    return Ok(Opened { written: plan.len(), needed, problem: None });
                }
                // Whoever changed the chain in the meantime made the handles wrong: once more.
                Err(Error::Refused { .. }) if attempts < 2 => {}
                Err(Error::Refused { message, .. }) => {
                    let problem = Some(closed(chain, &passes, gate, message));
                    return Ok(Opened { problem, ..Opened::default() });
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn look(
        &mut self,
        chain: &ListedChain,
        passes: &BTreeSet<Pass>,
        looked_at: &mut BTreeSet<ChainName>,
    ) -> Result<(Gate, Plan), Error> {
        let name = name_of(chain);
        let Some(listing) = self.list(&name).await? else { return Ok((Gate::Open, Plan::default())) };
        let chains = self.follow(&name, &listing, looked_at).await?;
        looked_at.insert(name);
        let policy = listing.chains().find_map(|it| it.policy.as_deref());
        let gate = chain::gate(listing.rules(), policy, &chains);
        let none = BTreeSet::new();
        let wanted = if gate == Gate::Open { &none } else { passes };
        Ok((gate, chain::plan(listing.rules(), gate, wanted)))
    }

    /// Rules are known by handles that count from one in each table, and nft cannot be told to give up if the table is
    /// another one; so that is made sure of right before.
    async fn carry_out(&mut self, chain: &ChainName, table: Option<u64>, plan: &Plan) -> Result<(), Error> {
        if plan.is_empty() {
            return Ok(());
        }
        if plan.names_rules() && self.table_handle(chain).await? != table {
            let message = format!("table {} was made anew meanwhile", chain.table);
            return Err(Error::Refused { call: "list tables".to_owned(), message });
        }
        self.nft.load(&plan.render(chain)).await
    }

    async fn table_handle(&mut self, chain: &ChainName) -> Result<Option<u64>, Error> {
        let tables = Listing::read("list tables", &self.nft.list_tables().await?)?;
        Ok(tables.table_handle(&chain.table))
    }

    /// What the rules are of each chain that this one sends whatever comes to.
    async fn follow(
        &mut self,
        name: &ChainName,
        listing: &Listing,
        looked_at: &mut BTreeSet<ChainName>,
    ) -> Result<BTreeMap<String, Vec<Sort>>, Error> {
        let mut chains = BTreeMap::new();
        let mut next: Vec<String> = targets(&listing.rules().map(sort).collect::<Vec<_>>());
        while let Some(target) = next.pop() {
            if chains.contains_key(&target) || chains.len() >= FOLLOWED {
                continue;
            }
            let of = ChainName { table: name.table.clone(), name: target.clone() };
            let listing = self.list(&of).await?;
            let sorts: Vec<Sort> = listing.iter().flat_map(Listing::rules).map(sort).collect();
            next.extend(targets(&sorts));
            looked_at.insert(of);
            chains.insert(target, sorts);
        }
        Ok(chains)
    }

    async fn list(&mut self, chain: &ChainName) -> Result<Option<Listing>, Error> {
        let listing = self.nft.list_chain(&chain.to_string()).await?;
        listing.map(|it| Listing::read(&format!("list chain {chain}"), &it)).transpose()
    }
}

#[derive(Default)]
struct Opened {
    written: usize,
    needed: bool,
    problem: Option<ForwardProblem>,
}

impl ForwardReport {
    fn note(&mut self, chain: ChainName, opened: Opened) {
        self.written += opened.written;
        self.problems.extend(opened.problem);
        if opened.needed {
            self.opened.insert(chain);
        }
    }
}

/// Whether forwarded IP packets pass it, and it is not ours.
fn is_forward(chain: &ListedChain) -> bool {
    let family = matches!(chain.family.as_str(), "ip" | "ip6" | "inet");
    family
        && chain.hook.as_deref() == Some("forward")
        && half_of(&format!("{} {}", chain.family, chain.table)).is_none()
}

fn name_of(chain: &ListedChain) -> ChainName {
    ChainName { table: format!("{} {}", chain.family, chain.table), name: chain.name.clone() }
}

fn targets(sorts: &[Sort]) -> Vec<String> {
    sorts.iter().filter_map(Sort::leads_to).map(str::to_owned).collect()
}

fn closed(chain: &ListedChain, passes: &BTreeSet<Pass>, gate: Gate, message: String) -> ForwardProblem {
    let (name, networks) = (name_of(chain), passes.iter().filter(|it| it.direction == Direction::From));
    let commands: Vec<String> = match chain.table.as_str() {
        "firewalld" => networks
            .map(|pass| format!("firewall-cmd --permanent --zone=trusted --add-source={}", pass.network))
            .chain(["firewall-cmd --reload".to_owned()])
            .collect(),
        _ => passes.iter().map(|pass| format!("nft {} accept", gate.rule(&name, pass))).collect(),
    };
    ForwardProblem::Closed { chain: name, message, remedy: commands.join("; ") }
}
