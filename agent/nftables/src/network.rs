//! The pod network's table: masquerade of what leaves it (contract N10).

use std::borrow::Cow;
use std::collections::BTreeMap;

use ipnet::IpNet;
use nftables::schema::{Element, NfCmd, NfListObject, NfObject, Nftables};
use nftables::types::NfFamily;
use podway_reconcile::{Delta, diff};

use crate::adopt::{Legacy, Wanted, remove_table};
use crate::json::{self, Listing};
use crate::process::Nft;
use crate::schema::{self, NETWORK};
use crate::{Error, NftProcess};

/// What the pod network's masquerade depends on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkRows {
    /// Where pods are, on any node; among themselves they keep their addresses.
    pub pod_networks: Vec<IpNet>,
    /// The pod subnets of this node.
    pub own_subnets: Vec<IpNet>,
}

/// Keeps the pod network's masquerade of one network namespace in nftables.
#[derive(Debug)]
pub struct Network<N = NftProcess> {
    nft: N,
    mark: u32,
    /// What the kernel holds; `None` when that is not known.
    held: Option<BTreeMap<(Set, IpNet), ()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Set {
    PodNetworks,
    OwnSubnets,
}

impl Set {
    fn name(self, network: &IpNet) -> &'static str {
        match (self, network) {
            (Self::PodNetworks, IpNet::V4(_)) => "pod-networks-4",
            (Self::PodNetworks, IpNet::V6(_)) => "pod-networks-6",
            (Self::OwnSubnets, IpNet::V4(_)) => "own-subnets-4",
            (Self::OwnSubnets, IpNet::V6(_)) => "own-subnets-6",
        }
    }

    fn named(name: &str) -> Option<Self> {
        match name {
            "pod-networks-4" | "pod-networks-6" => Some(Self::PodNetworks),
            "own-subnets-4" | "own-subnets-6" => Some(Self::OwnSubnets),
            _ => None,
        }
    }
}

impl<N: Nft> Network<N> {
    /// Takes over what stands, as [`crate::Services::adopt`] does. `mark` is the Services' masquerade bit.
    pub async fn adopt(nft: N, mark: u32) -> Result<Self, Error> {
        let mut network = Self { nft, mark, held: None };
        network.held = Some(network.observe().await?);
        Ok(network)
    }

    async fn observe(&mut self) -> Result<BTreeMap<(Set, IpNet), ()>, Error> {
        let table = format!("inet {NETWORK}");
        let wanted = Wanted { table: &table, rules: &schema::network(self.mark), sample: "" };
        let read = |listing: &Listing| {
            let listed = listing.elements();
            let held: BTreeMap<_, _> = listed
                .filter_map(|(set, it)| Some(((Set::named(set)?, json::read_prefix(it)?), ())))
                .collect();
            let text =
                |(set, network): &(Set, IpNet)| (set.name(network), json::text(&json::prefix(network)));
            let legacy = Legacy { elements: held.keys().map(text).collect(), ..Legacy::default() };
            (held, legacy)
        };
        wanted.adopt(&mut self.nft, read).await
    }

    /// Makes the kernel hold exactly `rows`, in one transaction; returns how many elements were written. After a
    /// refusal the next call looks at the kernel anew.
    pub async fn replace(&mut self, rows: &NetworkRows) -> Result<usize, Error> {
        let networks =
            IpNet::aggregate(&rows.pod_networks).into_iter().map(|it| ((Set::PodNetworks, it), ()));
        let subnets = IpNet::aggregate(&rows.own_subnets).into_iter().map(|it| ((Set::OwnSubnets, it), ()));
        let wanted = networks.chain(subnets).collect();
        let held = match self.held.take() {
            Some(held) => held,
            None => self.observe().await?,
        };
        let change = diff(&wanted, &held);
        if !change.is_empty() {
            self.nft.transact(&commands(&change)).await?;
        }
        self.held = Some(wanted);
        Ok(change.len())
    }

    /// The door that this writes through.
    pub fn nft_mut(&mut self) -> &mut N {
        &mut self.nft
    }

    /// Removes the pod network's table, and nothing else.
    pub async fn remove_all(nft: &mut N) -> Result<(), Error> {
        remove_table(nft, &format!("inet {NETWORK}")).await
    }
}

fn commands(change: &Delta<(Set, IpNet), ()>) -> Nftables<'static> {
    let element = |(set, network): &(Set, IpNet)| {
        NfListObject::Element(Element {
            family: NfFamily::INet,
            table: NETWORK.into(),
            name: set.name(network).into(),
            elem: Cow::Owned(vec![json::prefix(network)]),
        })
    };
    let removed = change.remove.iter().map(element).map(NfCmd::Delete);
    let added = change.set.keys().map(element).map(NfCmd::Add);
    Nftables { objects: Cow::Owned(removed.chain(added).map(NfObject::CmdObject).collect()) }
}
