//! The Service model, endpoint choice and the rows that both dataplanes load.
//!
//! Pure: no I/O, no clock, no logging. [`Planner`] takes [`Event`]s and gives [`RowDelta`]s; what it decides can be
//! read in `endpoints.rs` (which endpoints exist and which are used) and `plan.rs` (which rows a Service becomes).
//! The numbers S1 to S44 name the behaviours of a drop-in for kube-proxy; docs/contract.md lists them.

mod address;
mod endpoints;
mod model;
mod plan;
mod planner;
mod rows;

pub use address::parse_ip;
pub use endpoints::{EndpointChoice, MergedEndpoints, choose_endpoints, merge_slices};
pub use model::{
    Endpoint, EndpointSlice, NodeContext, ObjectName, Protocol, Service, ServicePort, SlicePort,
    TrafficPolicy,
};
pub use plan::{ServicePlan, plan_service};
pub use planner::{Event, Planner};
pub use rows::{Frontend, Hairpin, Masquerade, Pool, RowDelta, Rows};
