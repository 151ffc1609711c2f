//! The cluster state from an API server or a folder of manifests, as one stream of events; the nodes' subnets also from
//! flannel's etcd.
//!
//! I/O only: what an event means is decided in the pure crates. Both sources end in the same events, through the
//! same decoding of the objects.

mod api_server;
mod config;
mod decode;
mod directory;
mod error;
mod etcd;
mod event;
mod manifest;
mod outage;
mod source;
#[cfg(test)]
mod test_folder;
mod wanted;

pub use api_server::{
    AssignError, EventReason, EventWriter, NodeWriter, Regarding, SubnetClaims, node_of_pod,
};
pub use config::{DirectoryConfig, EtcdConfig, KubeConfig, SourceConfig};
pub use error::Error;
pub use etcd::{EtcdStore, LeaseRequest};
pub use event::{Event, Kind, Problem};
pub use manifest::use_annotation_prefix;
pub use source::Source;
pub use wanted::{Nodes, Wanted};
