//! Where the shop's manifests are put for the daemons to read: a folder, or an API server.

use anyhow::{Context, Result};
use podway_testkit::{ControlPlane, Folder, Lab};
use serde_json::{Value, json};

use crate::screen::Screen;
use crate::shop::{Manifest, Shop, document};

/// flannel's, so that nodes with either understand each other.
const ANNOTATION: &str = "flannel.alpha.coreos.com/backend-data";

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SourceKind {
    Directory,
    Kube,
}

/// The cluster that the daemons see.
pub(crate) enum Cluster {
    Directory(Folder),
    Kube(Box<ControlPlane>),
}

impl Cluster {
    /// An empty cluster; nothing of the shop is in it yet.
    pub(crate) fn raise(lab: &Lab, kind: SourceKind, screen: &Screen) -> Result<Self> {
        match kind {
            SourceKind::Directory => Ok(Self::Directory(lab.folder("manifests")?)),
            SourceKind::Kube => {
                let raise = || lab.control_plane();
                let plane = screen.wait("starting etcd and kube-apiserver", raise)?;
                Ok(Self::Kube(Box::new(plane)))
            }
        }
    }

    /// Puts the whole shop there.
    pub(crate) fn publish(&self, shop: &Shop) -> Result<()> {
        if let Self::Kube(plane) = self {
            plane.apply(surroundings()?).context("create the namespaces")?;
        }
        shop.manifests().into_iter().try_for_each(|manifest| self.put(manifest, &[]))
    }

    /// Makes the changes that lead from one state to another: EndpointSlices first, so that a Node is not in use when it
    /// goes.
    pub(crate) fn change(&self, from: &Shop, to: &Shop) -> Result<()> {
        for (from, to) in from.manifests().into_iter().zip(to.manifests()).rev() {
            if from != to {
                self.put(to, &from.documents)?;
            }
        }
        Ok(())
    }

    /// The flag or field that a daemon finds the cluster by.
    pub(crate) fn source(&self) -> Value {
        match self {
            Self::Directory(folder) => json!({ "directory": { "path": folder.path() } }),
            Self::Kube(plane) => json!({ "kube": { "kubeconfig": plane.kubeconfig() } }),
        }
    }

    /// What the daemons of an API server's Nodes have told each other there: by Node, how its VXLAN devices are reached.
    pub(crate) fn announcements(&self, shop: &Shop) -> Result<Vec<String>> {
        let Self::Kube(plane) = self else { return Ok(Vec::new()) };
        let read = |node: crate::shop::Node| {
            let object = plane.get(&format!("/api/v1/nodes/{}", node.name))?;
            let told = object["metadata"]["annotations"][ANNOTATION].as_str();
            told.map(str::to_owned)
                .with_context(|| format!("Node {} has no annotation {ANNOTATION}", node.name))
        };
        shop.nodes()?.into_iter().map(read).collect()
    }

    /// What an edit is to whoever makes it.
    pub(crate) fn edit(&self) -> &'static str {
        match self {
            Self::Directory(_) => "the file's write",
            Self::Kube(_) => "the request to the API server",
        }
    }

    /// `before` is what stands there of this file already.
    fn put(&self, manifest: &Manifest, before: &[Value]) -> Result<()> {
        match self {
            Self::Directory(folder) => {
                folder.write(manifest.file, &manifest.text)?;
            }
            Self::Kube(plane) => {
                for gone in before.iter().filter(|object| !contains(&manifest.documents, object)) {
                    plane.delete(document(gone)?)?;
                }
                for changed in manifest.documents.iter().filter(|object| !before.contains(object)) {
                    plane.apply(document(changed)?)?;
                }
            }
        }
        Ok(())
    }
}

fn contains(documents: &[Value], object: &Value) -> bool {
    documents.iter().any(|document| document["metadata"]["name"] == object["metadata"]["name"])
}

/// What a control plane with all its controllers would have made before the first pod.
fn surroundings() -> Result<String> {
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } });
    let metadata = json!({ "namespace": "shop", "name": "default" });
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata });
    // As manifests/podway.yaml makes it.
    let claims = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "podway-subnets" } });
    Ok(document(&namespace)? + &document(&account)? + &document(&claims)?)
}
