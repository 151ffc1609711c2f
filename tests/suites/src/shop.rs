//! Two nodes with the Service `web`, which most suites begin with.

use anyhow::Result;
use podway_testkit::manifests::Slices;
use podway_testkit::{Host, Lab, Pod, Process};

use crate::cluster::{Cluster, Dataplane, Member};
use crate::traffic::Way;
use crate::web::{WEB, WEB_PORT, web_behind, web_service};

/// A cluster over a folder with a Service `web` that is published and podways that run. `near` and a client are on
/// node-1, `far-1` and `far-2` on node-2; each serves under its name.
#[derive(Debug)]
pub struct Shop<'lab> {
    /// The cluster; `web` is published under that name.
    pub cluster: Cluster<'lab>,
    /// node-1.
    pub one: Member,
    /// node-2.
    pub two: Member,
    /// A pod on node-1.
    pub client: Pod,
    /// An endpoint on node-1.
    pub near: Pod,
    /// Two endpoints on node-2.
    pub far: [Pod; 2],
    /// The podways of both nodes.
    pub podways: [Process; 2],
    _servers: [Process; 3],
}

impl<'lab> Shop<'lab> {
    /// Raises all of it with the same dataplane on both nodes.
    pub fn open(lab: &'lab Lab, dataplane: Dataplane) -> Result<Self> {
        let (cluster, [one, two]) = Cluster::of_nodes(lab)?;
        let client = one.pod("client")?;
        let (near, near_server) = one.serving_pod("near")?;
        let (far_1, far_1_server) = two.serving_pod("far-1")?;
        let (far_2, far_2_server) = two.serving_pod("far-2")?;
        let (far, servers) = ([far_1, far_2], [near_server, far_1_server, far_2_server]);
        cluster.publish("web", format!("{}{}", web_service(), web_behind([&near, &far[0], &far[1]])))?;
        let podways = [one.podway(dataplane)?, two.podway(dataplane)?];
        Ok(Self { cluster, one, two, client, near, far, podways, _servers: servers })
    }

    /// Every way to call `web`.
    pub fn ways() -> Vec<Way> {
        Way::all(WEB, WEB_PORT)
    }

    /// A pod and its node.
    pub fn clients(&self) -> [&Host; 2] {
        [&self.client, &self.one]
    }

    /// The EndpointSlices that `web` has at first.
    pub fn behind_all(&self) -> Slices {
        web_behind([&self.near, &self.far[0], &self.far[1]])
    }

    /// Gives `web` these EndpointSlices.
    pub fn set(&self, slices: Slices) -> Result<()> {
        self.cluster.publish("web", format!("{}{slices}", web_service()))
    }

    /// Gives `web` these endpoints, all ready.
    pub fn set_endpoints<'pod>(&self, pods: impl IntoIterator<Item = &'pod Pod>) -> Result<()> {
        self.set(web_behind(pods))
    }
}
