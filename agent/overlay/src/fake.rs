//! A kernel for tests: it behaves as the real one does, as far as the pod network's steps go.

use ipnet::IpNet;

use crate::observed::{LinkKind, LinkState, Observed, VxlanState};
use crate::ops::{Op, Sysctl, Whose};
use crate::plan::{Route, VxlanLink};
use crate::units::{Family, IfIndex, LinkName};

/// Links, entries and settings in memory. Stricter than the real runner: what is absent cannot be removed.
#[derive(Debug, Clone, Default)]
pub struct FakeKernel {
    state: Observed,
    last_index: u32,
}

/// A step that the kernel would refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// ENODEV, ENOENT or ESRCH.
    #[error("no such object")]
    Missing,
    /// EEXIST.
    #[error("it exists already")]
    Exists,
    /// ENETDOWN.
    #[error("the link is down")]
    Down,
}

impl FakeKernel {
    /// What it holds.
    pub fn observe(&self) -> Observed {
        self.state.clone()
    }

    /// Its state, for a test to meddle with.
    pub fn state_mut(&mut self) -> &mut Observed {
        &mut self.state
    }

    /// Carries out one step.
    pub fn run(&mut self, op: &Op) -> Result<(), Refusal> {
        let rows = &mut self.state.rows;
        match op {
            Op::AddLink { name, link } => return self.add_link(name, link),
            Op::SetLink { name, mtu, mac, tunnel, release } => {
                let state = self.state.links.get_mut(name).ok_or(Refusal::Missing)?;
                state.ours = true;
                state.enslaved &= !release;
                if let (Some(tunnel), LinkKind::Vxlan(found)) = (tunnel, &mut state.kind) {
                    found.local = Some(tunnel.local);
                    found.lower = Some(tunnel.lower);
                    found.learning = tunnel.learning;
                }
                state.mtu = mtu.unwrap_or(state.mtu);
                if mac.is_some() {
                    state.mac = *mac;
                    rows.neighbours.retain(|key, _| key.link != *name);
                }
            }
            Op::LinkUp(name) => self.state.links.get_mut(name).ok_or(Refusal::Missing)?.up = true,
            Op::RemoveLink { name, .. } => return self.remove_link(name),
            Op::SetSysctl(sysctl) => {
                self.state.sysctls.insert(sysctl.clone(), sysctl.wanted().to_owned());
            }
            Op::AddAddress(link, address) => {
                let state = self.state.links.get_mut(link).ok_or(Refusal::Missing)?;
                state.addresses.insert(*address).then_some(()).ok_or(Refusal::Exists)?;
            }
            Op::RemoveAddress(link, address) => return self.remove_address(link, address),
            Op::SetNeighbour(key, mac) => {
                self.state.links.get(&key.link).ok_or(Refusal::Missing)?;
                rows.neighbours.insert(key.clone(), *mac);
            }
            Op::RemoveNeighbour(key) => drop(rows.neighbours.remove(key).ok_or(Refusal::Missing)?),
            Op::SetFdb(key, underlay) => {
                self.state.links.get(&key.link).ok_or(Refusal::Missing)?;
                rows.fdb.insert(key.clone(), *underlay);
            }
            Op::RemoveFdb(key, _) => drop(rows.fdb.remove(key).ok_or(Refusal::Missing)?),
            Op::SetRoute(subnet, route) => return self.set_route(subnet, route),
            Op::RemoveRoute(subnet, route, whose) => return self.remove_route(subnet, route, *whose),
            Op::SetBlackhole(subnet) => drop(self.state.blackholes.insert(*subnet)),
            Op::RemoveBlackhole(subnet) => {
                self.state.blackholes.remove(subnet).then_some(()).ok_or(Refusal::Missing)?;
            }
            Op::SetOffload(link, on) => {
                self.state.links.get_mut(link).ok_or(Refusal::Missing)?.offload = Some(*on);
            }
        }
        Ok(())
    }

    fn add_link(&mut self, name: &LinkName, link: &VxlanLink) -> Result<(), Refusal> {
        let same = |state: &LinkState| matches!(&state.kind, LinkKind::Vxlan(found) if in_use(found, link));
        if self.state.links.contains_key(name) || self.state.links.values().any(same) {
            return Err(Refusal::Exists);
        }
        self.last_index += 1;
        let state = LinkState {
            index: IfIndex(self.last_index),
            kind: LinkKind::Vxlan(VxlanState::from(link)),
            mtu: link.mtu,
            mac: Some(link.mac),
            up: false,
            enslaved: false,
            ours: true,
            addresses: Default::default(),
            offload: Some(true),
        };
        self.state.links.insert(name.clone(), state);
        self.state.sysctls.insert(Sysctl::AcceptRa(name.clone()), "1".to_owned());
        if let Ok(default) = LinkName::new("default")
            && let Some(value) = self.state.sysctls.get(&Sysctl::RpFilter(default)).cloned()
        {
            self.state.sysctls.insert(Sysctl::RpFilter(name.clone()), value);
        }
        Ok(())
    }

    fn remove_link(&mut self, name: &LinkName) -> Result<(), Refusal> {
        self.state.links.remove(name).ok_or(Refusal::Missing)?;
        self.state.rows = self.state.rows.of_links(|link| link != name);
        self.state.flannel_routes.retain(|_, route| route.link != *name);
        self.state.sysctls.remove(&Sysctl::AcceptRa(name.clone()));
        self.state.sysctls.remove(&Sysctl::RpFilter(name.clone()));
        Ok(())
    }

    /// The last address of a family takes the link's routes of that family with it.
    fn remove_address(&mut self, link: &LinkName, address: &IpNet) -> Result<(), Refusal> {
        let addresses = &mut self.state.links.get_mut(link).ok_or(Refusal::Missing)?.addresses;
        addresses.remove(address).then_some(()).ok_or(Refusal::Missing)?;
        let family = Family::of(address);
        if !addresses.iter().any(|other| Family::of(other) == family) {
            self.state
                .rows
                .routes
                .retain(|subnet, route| route.link != *link || Family::of(subnet) != family);
        }
        Ok(())
    }

    /// A route without gateway of its own link is on a link of the machine's, which is up.
    fn set_route(&mut self, subnet: &IpNet, route: &Route) -> Result<(), Refusal> {
        if route.onlink {
            let link = self.state.links.get(&route.link).ok_or(Refusal::Missing)?;
            link.up.then_some(()).ok_or(Refusal::Down)?;
        }
        self.state.flannel_routes.remove(subnet);
        self.state.rows.routes.insert(*subnet, route.clone());
        self.state.altered_routes.remove(subnet);
        Ok(())
    }

    fn remove_route(&mut self, subnet: &IpNet, route: &Route, whose: Whose) -> Result<(), Refusal> {
        let routes = match whose {
            Whose::Ours => &mut self.state.rows.routes,
            Whose::Flannels => &mut self.state.flannel_routes,
        };
        match routes.get(subnet) {
            Some(found) if found == route => {
                routes.remove(subnet);
                self.state.altered_routes.remove(subnet);
            }
            _ => return Err(Refusal::Missing),
        }
        Ok(())
    }
}

fn in_use(found: &VxlanState, link: &VxlanLink) -> bool {
    let same_family = found.local.is_some_and(|local| local.is_ipv4() == link.local.is_ipv4());
    found.vni == link.vni.get() && found.port == link.port && same_family
}
