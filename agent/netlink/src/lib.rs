//! Links, addresses, routes, neighbours and FDB entries through rtnetlink.
//!
//! [`Netlink`] is the only thing here that touches the kernel, always that of the network namespace in which it was
//! opened. It reads what is ours or stands where ours belongs, and carries out steps; what the steps are is decided
//! in `podway_overlay`, whose `FakeKernel` stands in for this crate in tests.

mod asked;
mod batch;
mod broken;
mod dump;
mod error;
mod ethtool;
mod external;
mod host;
mod netconf;
mod netlink;
mod observe;
mod render;
mod run;
mod view;
mod watch;

pub use error::Error;
pub use external::InterfaceChoice;
pub use netlink::Netlink;
pub use run::{Failure, Report};
pub use view::{Drift, Followed};
pub use watch::Watch;

/// Protocol number of our routes, by which they are told from everybody else's.
///
/// Not in iproute2's rt_protos (0 to 18, 42, 84, 99, 186 to 196), and not the 80 of Calico or the 66 of cloud
/// agents.
pub const ROUTE_PROTOCOL: u8 = 105;

/// The alias that marks a link as ours.
pub const LINK_ALIAS: &str = "podway";
