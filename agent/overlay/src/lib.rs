//! Node subnets and the VXLAN overlay as links, routes, neighbours and FDB entries.
//!
//! Pure: no I/O, no clock, no logging. The numbers N1 to N23 name the behaviours of a drop-in for flannel;
//! docs/contract.md lists them.

mod node;

pub use node::Node;
