//! Network namespaces, packet senders and a control plane for the tests, the demo and the benchmarks.
//!
//! A [`Lab`] is an underlay of its own with [`Node`]s, [`Pod`]s and outside [`Host`]s on it, all real network
//! namespaces of this machine. Programs run inside a host ([`Host::command`]), packets are sent by `podway-probe`
//! ([`Host::send`], [`Host::serve`]), and a real API server stands on the underlay when asked for
//! ([`Lab::control_plane`]). Everything goes away with the `Lab`: at its end, in a panic, on Ctrl-C, and after a
//! kill -9 at the next start of the same lab.
//!
//! ```no_run
//! use podway_testkit::{Probe, binary, eventually, in_lab, manifests};
//! use std::time::Duration;
//!
//! #[test]
//! fn a_cluster_ip_leads_to_every_pod() {
//!     in_lab("cluster-ip", |lab| {
//!         let node = lab.node("node-1")?;
//!         let client = node.pod("client", ["10.244.1.9", "fd00:10:244:1::9"])?;
//!         let pods = [
//!             node.pod("web-1", ["10.244.1.2", "fd00:10:244:1::2"])?,
//!             node.pod("web-2", ["10.244.1.3", "fd00:10:244:1::3"])?,
//!         ];
//!         let _servers = (pods[0].serve("web-1", 8080)?, pods[1].serve("web-2", 8080)?);
//!
//!         let cluster = lab.folder("cluster")?;
//!         let service = manifests::service("web").cluster_ips(["10.96.0.10", "fd00:10:96::10"]).tcp("http", 80, 8080);
//!         let slices = pods.iter().fold(manifests::slices("web").tcp("http", 8080), |slices, pod| slices.pod(pod));
//!         cluster.write("web.yaml", format!("{service}{slices}"))?;
//!         let podway = node.command(binary("podway")?).args(["run", "--directory"]).arg(cluster.path()).start("podway")?;
//!
//!         for address in ["10.96.0.10:80", "[fd00:10:96::10]:80"] {
//!             eventually(Duration::from_secs(10), "both pods answer", || {
//!                 let answers = client.send(Probe::tcp(address).count(100)).map_err(|error| format!("{error:#}"))?;
//!                 if answers.by_name().len() == 2 { Ok(()) } else { Err(answers.to_string()) }
//!             });
//!         }
//!         assert!(podway.stop()?.success());
//!         Ok(())
//!     });
//! }
//! ```
//!
//! Nothing outside the lab's own namespaces, cgroups and folder is touched. Needs root.

pub mod manifests;

mod answers;
mod api;
mod binaries;
mod cgroup;
mod claim;
mod command;
mod control_plane;
mod counter;
mod etcd;
mod eventually;
mod folder;
mod host;
mod interrupt;
mod lab;
mod namespace;
mod node;
mod probe;
mod probing;
mod process;
mod site;

pub use answers::{Answer, Answers, Failure};
pub use binaries::{binary, reference, require_root};
pub use command::{Command, Output};

pub use control_plane::{ControlPlane, POD_CIDRS, SERVICE_CIDRS};
pub use counter::Counter;
pub use etcd::{Etcd, EtcdKey, EtcdTls};
pub use eventually::{eventually, within};
pub use folder::Folder;
pub use host::Host;
pub use lab::{Lab, in_lab};
pub use node::{Node, POD_MTU, Pod};
pub use probe::{Probe, Transport};
pub use probing::Running;
pub use process::Process;
