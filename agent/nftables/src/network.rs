//! The pod network's table: masquerade of what leaves it (contract N10).

use std::borrow::Cow;
use std::collections::BTreeMap;

use ipnet::IpNet;
use nftables::schema::{Element, NfCmd, NfListObject, NfObject, Nftables};
use nftables::types::NfFamily;
use podway_reconcile::{Delta, diff};

use crate::adopt::{Knowledge, Standing, Wanted, element_line, network_text, remove_table};
use crate::json;
use crate::listing::Listing;
use crate::process::Nft;
use crate::schema::{self, Family, NETWORK, Ports};
use crate::{Error, NftProcess};

/// What the pod network's masquerade depends on. Without pod networks nothing is masqueraded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkRows {
    /// Where pods are, on any node; among themselves they keep their addresses.
    pub pod_networks: Vec<IpNet>,
    /// The pod subnets of this node.
    pub own_subnets: Vec<IpNet>,
    /// Where else pods keep their addresses: ip-masq-agent's nonMasqueradeCIDRs. Unlike there, link-local addresses
    /// are not among them unless they are named: nothing at 169.254.169.254 knows a way back to a pod.
    pub non_masquerade: Vec<IpNet>,
    /// How masqueraded connections get their ports.
    pub ports: Ports,
}

/// Keeps the pod network's masquerade of one network namespace in nftables.
#[derive(Debug)]
pub struct Network<N = NftProcess> {
    nft: N,
    mark: u32,
    /// What the kernel holds, and with which rules; `None` when that is not known.
    held: Option<(Ports, Elements)>,
    rules: Knowledge,
}

type Elements = BTreeMap<(Set, IpNet), ()>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Set {
    PodNetworks,
    OwnSubnets,
    NonMasquerade,
}

impl Set {
    const ALL: [Self; 3] = [Self::PodNetworks, Self::OwnSubnets, Self::NonMasquerade];

    fn name(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::PodNetworks, Family::Ip) => "pod-networks-4",
            (Self::PodNetworks, Family::Ip6) => "pod-networks-6",
            (Self::OwnSubnets, Family::Ip) => "own-subnets-4",
            (Self::OwnSubnets, Family::Ip6) => "own-subnets-6",
            (Self::NonMasquerade, Family::Ip) => "non-masquerade-4",
            (Self::NonMasquerade, Family::Ip6) => "non-masquerade-6",
        }
    }

    fn of(self, network: &IpNet) -> &'static str {
        self.name(Family::of(network.addr()))
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|set| Family::ALL.iter().any(|family| set.name(*family) == name))
    }
}

impl<N: Nft> Network<N> {
    /// Makes sure that nft can be used, and leaves what stands as it is until the first rows come (contract S24).
    /// `mark` is the Services' masquerade bit.
    pub async fn adopt(mut nft: N, mark: u32) -> Result<Self, Error> {
        nft.list_table(&table()).await?;
        Ok(Self { nft, mark, held: None, rules: Knowledge::default() })
    }

    /// To be called when somebody else changed the table: the next [`Network::replace`] looks at it anew, and
    /// at what its rules say.
    pub fn invalidate(&mut self) {
        self.held = None;
        self.rules.doubt();
    }

    /// Makes the kernel hold exactly `rows`, and the rules that go with them, in one transaction; returns how many
    /// elements were written, at least 1 if rules were. After a refusal the next call looks at the kernel anew.
    pub async fn replace(&mut self, rows: &NetworkRows) -> Result<usize, Error> {
        let (text, wanted) = (schema::network(self.mark, rows.ports), elements(rows));
        let table = table();
        let make = Wanted { table: &table, rules: &text, sample: "" };
        let (standing, held) = match self.held.take() {
            Some((ports, held)) if ports == rows.ports => (Standing::Sound, held),
            Some((_, held)) => (Standing::OtherMake, held),
            None => self.observe(&make).await?,
        };
        let written = self.write(&make, standing, &diff(&wanted, &held), &wanted).await?;
        self.held = Some((rows.ports, wanted));
        self.rules.settle();
        Ok(written)
    }

    async fn observe(&mut self, make: &Wanted<'_>) -> Result<(Standing, Elements), Error> {
        let (standing, listing) = make.observe(&mut self.nft).await?;
        let Some(listing) = listing else { return Ok((standing, Elements::new())) };
        Ok((self.rules.judge(standing, &listing), read(&listing)))
    }

    async fn write(
        &mut self,
        make: &Wanted<'_>,
        standing: Standing,
        change: &Delta<(Set, IpNet), ()>,
        wanted: &Elements,
    ) -> Result<usize, Error> {
        match standing {
            Standing::Sound if change.is_empty() => return Ok(0),
            Standing::Sound => {
                self.nft.transact(&commands(change)).await?;
                return Ok(change.len());
            }
            Standing::Damaged => {
                if self.nft.load(&format!("{}{}", make.repair(), lines(change))).await.is_ok() {
                    self.rules.learn(make, &mut self.nft).await?;
                    return Ok(change.len().max(1));
                }
            }
            Standing::Missing | Standing::OtherMake => {}
        }
        let elements: Vec<_> = wanted.keys().map(|(set, it)| (set.of(it), network_text(it))).collect();
        self.nft.load(&make.replacement("", &elements)).await?;
        self.rules.learn(make, &mut self.nft).await?;
        Ok(wanted.len().max(1))
    }

    /// The door that this writes through.
    pub fn nft_mut(&mut self) -> &mut N {
        &mut self.nft
    }

    /// Removes the pod network's table, and nothing else.
    pub async fn remove_all(nft: &mut N) -> Result<(), Error> {
        remove_table(nft, &table()).await
    }
}

fn table() -> String {
    format!("inet {NETWORK}")
}

fn elements(rows: &NetworkRows) -> Elements {
    let of =
        |set, networks: &[IpNet]| IpNet::aggregate(&networks.to_vec()).into_iter().map(move |it| (set, it));
    let all = of(Set::PodNetworks, &rows.pod_networks)
        .chain(of(Set::OwnSubnets, &rows.own_subnets))
        .chain(of(Set::NonMasquerade, &rows.non_masquerade));
    all.map(|key| (key, ())).collect()
}

fn read(listing: &Listing) -> Elements {
    let key = |(set, element)| Some((Set::named(set)?, json::read_prefix(element)?));
    listing.elements().filter_map(key).map(|key| (key, ())).collect()
}

/// The change as text, to go with a text of rules.
fn lines(change: &Delta<(Set, IpNet), ()>) -> String {
    let line = |verb, (set, it): &(Set, IpNet)| element_line(verb, &table(), set.of(it), &network_text(it));
    let removed = change.remove.iter().map(|key| line("delete", key));
    removed.chain(change.set.keys().map(|key| line("add", key))).collect()
}

fn commands(change: &Delta<(Set, IpNet), ()>) -> Nftables<'static> {
    let element = |(set, network): &(Set, IpNet)| {
        NfListObject::Element(Element {
            family: NfFamily::INet,
            table: NETWORK.into(),
            name: set.of(network).into(),
            elem: Cow::Owned(vec![json::prefix(network)]),
        })
    };
    let removed = change.remove.iter().map(element).map(NfCmd::Delete);
    let added = change.set.keys().map(element).map(NfCmd::Add);
    Nftables { objects: Cow::Owned(removed.chain(added).map(NfObject::CmdObject).collect()) }
}
