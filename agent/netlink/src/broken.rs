//! Which steps of a run must not be carried out after others have failed.

use std::collections::{BTreeMap, BTreeSet};

use podway_overlay::{Family, FdbKey, LinkName, NeighbourKey, Op, Sysctl};

/// What failed, and therefore what must not be built on it.
#[derive(Debug, Default)]
pub(crate) struct Broken {
    links: BTreeSet<LinkName>,
    neighbours: BTreeSet<NeighbourKey>,
    fdb: BTreeSet<FdbKey>,
    /// Links on which something was to be set and was not: nothing is removed from them.
    unsettled: BTreeSet<LinkName>,
    /// The FDB entry that each neighbour of this run needs.
    needs: BTreeMap<NeighbourKey, FdbKey>,
    /// Forwarding over IPv6 would cost a default route.
    stranding: bool,
}

impl Broken {
    pub(crate) fn seen(&mut self, op: &Op) {
        if let Op::SetNeighbour(key, mac) = op {
            self.needs.insert(key.clone(), FdbKey { link: key.link.clone(), mac: *mac });
        }
    }

    pub(crate) fn blocks(&self, op: &Op) -> bool {
        if link_of(op).is_some_and(|link| self.links.contains(link)) {
            return true;
        }
        match op {
            Op::SetNeighbour(key, mac) => self.fdb.contains(&FdbKey { link: key.link.clone(), mac: *mac }),
            Op::SetRoute(_, route) => {
                let key = NeighbourKey { link: route.link.clone(), address: route.via };
                self.neighbours.contains(&key)
                    || self.needs.get(&key).is_some_and(|fdb| self.fdb.contains(fdb))
            }
            Op::SetSysctl(Sysctl::Forwarding(Family::V6) | Sysctl::LinkForwarding(Family::V6, _)) => {
                self.stranding
            }
            Op::RemoveNeighbour(NeighbourKey { link, .. }) | Op::RemoveFdb(FdbKey { link, .. }, _) => {
                self.unsettled.contains(link)
            }
            _ => false,
        }
    }

    pub(crate) fn note(&mut self, op: &Op) {
        match op {
            // Where IPv6 is switched off an address is the first to be refused, and every entry would be.
            Op::AddLink { name, .. }
            | Op::AddAddress(name, _)
            | Op::LinkUp(name)
            | Op::SetLink { name, tunnel: Some(_), .. }
            | Op::RemoveLink { name, .. } => {
                self.links.insert(name.clone());
            }
            Op::SetSysctl(Sysctl::KeepRa(_)) => self.stranding = true,
            Op::SetNeighbour(key, _) => {
                self.neighbours.insert(key.clone());
                self.unsettled.insert(key.link.clone());
            }
            Op::SetFdb(key, _) => {
                self.fdb.insert(key.clone());
                self.unsettled.insert(key.link.clone());
            }
            Op::SetRoute(_, route) => drop(self.unsettled.insert(route.link.clone())),
            _ => {}
        }
    }
}

/// The link that a step is on.
pub(crate) fn link_of(op: &Op) -> Option<&LinkName> {
    match op {
        Op::AddLink { name, .. } | Op::SetLink { name, .. } | Op::RemoveLink { name, .. } => Some(name),
        Op::LinkUp(link) | Op::AddAddress(link, _) | Op::RemoveAddress(link, _) => Some(link),
        Op::SetNeighbour(key, _) | Op::RemoveNeighbour(key) => Some(&key.link),
        Op::SetFdb(key, _) | Op::RemoveFdb(key, _) => Some(&key.link),
        Op::SetRoute(_, route) | Op::RemoveRoute(_, route, _) => Some(&route.link),
        Op::SetOffload(link, _) => Some(link),
        Op::SetSysctl(
            Sysctl::AcceptRa(link)
            | Sysctl::KeepRa(link)
            | Sysctl::RpFilter(link)
            | Sysctl::LinkForwarding(_, link),
        ) => Some(link),
        Op::SetSysctl(Sysctl::Forwarding(_)) | Op::SetBlackhole(_) | Op::RemoveBlackhole(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use podway_overlay::Route;

    use super::*;

    #[test]
    fn n14_no_route_is_set_without_its_entries_and_nothing_is_removed_meanwhile() {
        let (neighbour, fdb, route) = peer(2);
        for failed in [&neighbour, &fdb] {
            let mut broken = Broken::default();
            [&neighbour, &fdb].into_iter().for_each(|op| broken.seen(op));
            assert!(!broken.blocks(&route));
            broken.note(failed);
            assert!(broken.blocks(&route), "{failed}");
            let (other_neighbour, other_fdb, other_route) = peer(3);
            for other in [other_neighbour, other_fdb, other_route] {
                assert!(!broken.blocks(&other), "another peer goes on: {other}");
            }
            let Op::SetNeighbour(key, _) = &neighbour else { panic!("a neighbour") };
            assert!(broken.blocks(&Op::RemoveNeighbour(key.clone())));
        }
    }

    #[test]
    fn a_neighbour_keeps_its_mac_while_the_fdb_does_not_know_the_new_one() {
        let (neighbour, fdb, _) = peer(2);
        let mut broken = Broken::default();
        broken.note(&fdb);
        assert!(broken.blocks(&neighbour));
    }

    #[test]
    fn a_link_that_fails_takes_its_steps_along_and_no_others() {
        let (neighbour, fdb, route) = peer(2);
        let mut broken = Broken::default();
        broken.note(&Op::LinkUp(link("flannel.1")));
        assert!([neighbour, fdb, route].iter().all(|op| broken.blocks(op)));
        assert!(!broken.blocks(&Op::LinkUp(link("flannel-v6.1"))));
        assert!(!broken.blocks(&Op::SetSysctl(Sysctl::Forwarding(Family::V4))));
    }

    #[test]
    fn n19_forwarding_stays_off_where_it_would_cost_the_default_route() {
        let mut broken = Broken::default();
        broken.note(&Op::SetSysctl(Sysctl::KeepRa(link("eth0"))));
        assert!(broken.blocks(&Op::SetSysctl(Sysctl::Forwarding(Family::V6))));
        assert!(!broken.blocks(&Op::SetSysctl(Sysctl::Forwarding(Family::V4))));
    }

    fn peer(n: u8) -> (Op, Op, Op) {
        let (link, mac) = (link("flannel.1"), podway_overlay::Mac::new([2, 0, 0, 0, 0, n]));
        let via = [10, 244, n, 0].into();
        (
            Op::SetNeighbour(NeighbourKey { link: link.clone(), address: via }, mac),
            Op::SetFdb(FdbKey { link: link.clone(), mac }, [192, 0, 2, n].into()),
            Op::SetRoute(IpNet::from(via), Route { via, link, onlink: true }),
        )
    }

    fn link(name: &str) -> LinkName {
        LinkName::new(name).unwrap()
    }
}
