//! The pod network's table: masquerade of what leaves it (contract N10).

use std::borrow::Cow;
use std::collections::BTreeMap;

use ipnet::IpNet;
use nftables::schema::{Element, NfCmd, NfListObject, NfObject, Nftables};
use nftables::types::NfFamily;
use podway_reconcile::{Delta, diff};

use crate::json::{self, Listing};
use crate::process::Nft;
use crate::schema::{self, NETWORK};
use crate::services::remove_table;
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
    held: BTreeMap<(Set, IpNet), ()>,
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
    pub async fn adopt(mut nft: N, mark: u32) -> Result<Self, Error> {
        let table = format!("inet {NETWORK}");
        let rules = schema::network(mark);
        let listing = match nft.list_table(&table).await? {
            Some(text) => Some(Listing::read(&format!("list table {table}"), &text)?),
            None => None,
        };
        let listed = listing.iter().flat_map(Listing::elements);
        let held =
            listed.filter_map(|(set, it)| Some(((Set::named(set)?, json::read_prefix(it)?), ()))).collect();
        if listing.and_then(|it| it.generation()) != Some(schema::generation(&rules)) {
            nft.load(&schema::load(&table, &rules, "")).await?;
        }
        Ok(Self { nft, held })
    }

    /// Makes the kernel hold exactly `rows`, in one transaction; returns how many elements were written.
    pub async fn replace(&mut self, rows: &NetworkRows) -> Result<usize, Error> {
        let networks =
            IpNet::aggregate(&rows.pod_networks).into_iter().map(|it| ((Set::PodNetworks, it), ()));
        let subnets = IpNet::aggregate(&rows.own_subnets).into_iter().map(|it| ((Set::OwnSubnets, it), ()));
        let wanted = networks.chain(subnets).collect();
        let change = diff(&wanted, &self.held);
        if !change.is_empty() {
            self.nft.transact(&commands(&change)).await?;
            self.held = wanted;
        }
        Ok(change.len())
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
