//! The Service model, endpoint choice and the rows that both dataplanes load.
//!
//! Pure: no I/O, no clock, no logging. The numbers S1 to S44 name the behaviours of a drop-in for kube-proxy;
//! docs/contract.md lists them.

mod address;
mod model;
mod rows;

pub use address::parse_ip;
pub use model::{
    Endpoint, EndpointSlice, NodeContext, ObjectName, Protocol, Service, ServicePort, SlicePort, TrafficPolicy,
};
pub use rows::{Frontend, Hairpin, Masquerade, Pool, RowDelta, Rows};
