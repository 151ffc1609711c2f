//! What a VPC range that is too small does hold.

use ipnet::IpNet;

use super::Room;
use super::search::{Bits, LEAST_SERVICE_BITS, Search, prefix_len, service_sizes};

/// A VPC range that is too small, and what it does hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct Shortfall {
    /// The VPC's range.
    pub vpc: IpNet,
    /// What was asked.
    pub asked: Room,
    /// Prefix length of the pod network that it takes; `None` if no network is that large.
    pub pods_len: Option<u8>,
    /// Prefix length of the Service range that it takes.
    pub services_len: u8,
    /// The largest block that is not reserved.
    pub largest_free: Option<IpNet>,
    /// What would fit, each less than asked in one respect only, where there is such.
    pub fits: Vec<Room>,
}

impl Shortfall {
    /// Of a search that found nothing, though it asked for the least.
    pub(super) fn of(search: &Search, least: Bits) -> Self {
        let most = search.family().host_prefix();
        let fewer_nodes = (2..least.nodes).rev().map(|nodes| Bits { nodes, ..least });
        let fewer_pods = (2..least.subnet).rev().map(|subnet| Bits { subnet, ..least });
        let fewer_services = service_sizes(search.family(), LEAST_SERVICE_BITS, least.services - 1)
            .map(|services| Bits { services, ..least });
        let fits =
            [largest(search, fewer_nodes), largest(search, fewer_pods), largest(search, fewer_services)];
        Self {
            vpc: search.vpc,
            asked: search.asked,
            pods_len: least
                .subnet
                .checked_add(least.nodes)
                .and_then(|bits| prefix_len(search.family(), bits)),
            services_len: most.saturating_sub(least.services),
            largest_free: search.free.iter().min_by_key(|block| block.prefix_len()).copied(),
            fits: fits.into_iter().flatten().collect(),
        }
    }

    fn text(&self) -> String {
        let takes = match self.pods_len {
            Some(pods_len) => format!("a /{pods_len} for pods"),
            None => "more than there are addresses for pods".to_owned(),
        };
        let free = match self.largest_free {
            Some(free) => format!("the largest part that is not reserved is {free}"),
            None => "all of it is reserved".to_owned(),
        };
        let mut text = format!(
            "{} does not hold {}: that takes {takes} and a /{} for Services, and {free}",
            self.vpc, self.asked, self.services_len
        );
        for (at, room) in self.fits.iter().enumerate() {
            text += if at == 0 { ". What would fit: " } else { "; or " };
            text += &room.to_string();
        }
        if self.fits.is_empty() {
            text += ". Give a larger range, or ask for less of everything";
        }
        text
    }
}

/// What the first of these that has room holds, of what was asked.
fn largest(search: &Search, mut tries: impl Iterator<Item = Bits>) -> Option<Room> {
    let room = tries.find_map(|bits| search.place(bits))?.room();
    Some(Room {
        nodes: room.nodes.min(search.asked.nodes),
        pods_per_node: room.pods_per_node.min(search.asked.pods_per_node),
        services: room.services.min(search.asked.services),
    })
}
