//! What all ServiceCIDRs say together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

/// The ServiceCIDRs that there are.
#[derive(Debug, Default)]
pub(crate) struct ServiceCidrs(BTreeMap<Arc<str>, Vec<IpNet>>);

impl ServiceCidrs {
    /// Takes the event that the ServiceCIDR `name` has these ranges now, or is gone; returns the union of all (contract
    /// S10), without ranges that lie in others.
    pub(crate) fn apply(&mut self, name: Arc<str>, cidrs: Option<Vec<IpNet>>) -> Vec<IpNet> {
        match cidrs {
            Some(cidrs) => self.0.insert(name, cidrs),
            None => self.0.remove(&name),
        };
        let all: BTreeSet<IpNet> = self.0.values().flatten().map(IpNet::trunc).collect();
        let is_within_another = |net: &IpNet| all.iter().any(|other| other != net && other.contains(net));
        all.iter().filter(|net| !is_within_another(net)).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s10_service_cidrs_count_as_a_union_however_they_overlap() {
        let mut all = ServiceCidrs::default();
        let mut apply = |name: &str, cidrs: Option<&[&str]>| -> Vec<String> {
            let cidrs = cidrs.map(|texts| texts.iter().map(|text| text.parse().unwrap()).collect());
            all.apply(name.into(), cidrs).iter().map(ToString::to_string).collect()
        };
        assert_eq!(apply("a", Some(&["10.96.0.0/16", "fd96::/112"])), ["10.96.0.0/16", "fd96::/112"]);
        assert_eq!(apply("b", Some(&["10.96.0.0/12"])), ["10.96.0.0/12", "fd96::/112"]);
        assert_eq!(apply("c", Some(&["10.96.0.0/12"])), ["10.96.0.0/12", "fd96::/112"]);
        assert_eq!(apply("b", None), ["10.96.0.0/12", "fd96::/112"]);
        assert_eq!(apply("c", None), ["10.96.0.0/16", "fd96::/112"]);
        assert_eq!(apply("a", None), [""; 0]);
    }
}
