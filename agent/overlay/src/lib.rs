//! Node subnets and the VXLAN overlay as links, routes, neighbours and FDB entries.
//!
//! Pure: no I/O, no clock, no logging. The numbers N1 to N23 name the behaviours of a drop-in for flannel;
//! docs/contract.md lists them.
//!
//! [`Overlay`] takes Nodes and facts about this machine and says what the kernel should hold; [`Op`] is one step
//! towards it. Who carries the steps out is not known here; [`FakeKernel`] does it in tests.
//!
//! ```
//! # use podway_overlay::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let node = |name: &str, n: u8| Node {
//! #     name: name.into(),
//! #     addresses: vec![[192, 0, 2, n].into()],
//! #     pod_cidrs: vec![format!("10.244.{n}.0/24").parse().unwrap()],
//! #     ..Node::default()
//! # };
//! # let external = ExternalInterface {
//! #     index: IfIndex(2),
//! #     name: LinkName::new("eth0")?,
//! #     mtu: Mtu::new(1500)?,
//! #     v4: Some([192, 0, 2, 1].into()),
//! #     v6: None,
//! # };
//! # let mut kernel = FakeKernel::default();
//! let settings = Settings::new("node-1", vec!["10.244.0.0/16".parse()?], Peering::Derived);
//! let mut overlay = Overlay::new(settings.clone())?;
//! for node in [node("node-1", 1), node("node-2", 2)] {
//!     overlay.apply(&node.name, Some(&node));
//! }
//! // Once the first list of Nodes is through: look at the kernel, and do what is missing.
//! let observed = kernel.observe();
//! overlay.set_host(Host { device_macs: observed.device_macs(&settings), ..Host::new(external) });
//! for op in overlay.reconcile(&observed) {
//!     kernel.run(&op)?;
//! }
//! // From then on each event costs what it changes; `None` asks for another look.
//! overlay.apply(&"node-2".into(), None);
//! for op in overlay.changes().ok_or("observe and reconcile")? {
//!     kernel.run(&op)?;
//! }
//! assert!(kernel.observe().rows.routes.is_empty());
//! # Ok(())
//! # }
//! ```

mod acquire;
mod annotations;
mod assign;
mod display;
mod fake;
mod host;
mod index;
mod lease;
mod local;
mod net_conf;
mod node;
mod observed;
mod offload;
mod ops;
mod overlaps;
mod overlay;
mod peer;
mod plan;
mod problem;
mod range;
mod settings;
mod subnet_env;
mod units;
mod vpc;

pub use acquire::{Acquisition, Decision};
pub use annotations::ANNOTATION_PREFIX;
pub use assign::{
    AssignAnswer, AssignMode, AssignPolicy, AssignRequest, AssignStep, Assigner, Assignment, Claim,
    NodeSubnets, Unassigned, claim_name, claim_subnet,
};
pub use fake::{FakeKernel, Refusal};
pub use host::{Host, HostRoute};
pub use lease::{Lease, LeaseAttributes, LeaseError, LeaseKey};
pub use net_conf::{BackendKind, NetConf, NetConfBackend, NetConfError, NetConfRange};
pub use node::Node;
pub use observed::{LinkKind, LinkState, Observed, Sought, VxlanState};
pub use offload::Breakage;
pub use ops::{Op, Sysctl, Tunnel, Whose, WhyRemoved, diff, removal};
pub use overlaps::{Addressing, Claimant, HostNet, Overlap, Severity, overlaps};
pub use overlay::Overlay;
pub use peer::Vtep;
pub use plan::{FdbKey, Held, Masquerade, NeighbourKey, OverlayPlan, Path, Route, Rows, VxlanLink};
pub use problem::{Problem, Reason};
pub use range::{Range, RangeError};
pub use settings::{Backend, DEFAULT_PORT, Offload, Peering, Settings, SettingsError};
pub use subnet_env::{SubnetEnv, SubnetEnvError};
pub use units::{ExternalInterface, Family, IfIndex, InvalidUnit, LinkName, Mac, Mtu, PerFamily, Vni};
pub use vpc::{Room, Shortfall, VpcError, VpcNote, VpcPlan, VpcRequest, plan_vpc, vpc_notes};
