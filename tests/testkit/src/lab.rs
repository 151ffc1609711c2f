//! A lab: an underlay with hosts on it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};

use crate::claim::{self, Claim};
use crate::control_plane::ControlPlane;
use crate::counter::Counter;
use crate::etcd::Etcd;
use crate::folder::Folder;
use crate::host::Host;
use crate::interrupt;
use crate::node::Node;
use crate::require_root;
use crate::site::Site;

/// How much of each log a failing test shows.
const TAIL_LINES: usize = 40;

/// An underlay network of its own, with everything on it. Several may stand at once, each under its own name.
///
/// Removed when dropped, also by a panic, and on SIGINT and SIGTERM. While a panic goes by, the ends of all logs are
/// printed.
#[derive(Debug)]
pub struct Lab {
    site: Arc<Site>,
    vxlan: Counter,
}

/// Runs a test in a lab of its own; an error fails the test, and shows the logs, as a panic does.
#[track_caller]
pub fn in_lab(name: &str, test: impl FnOnce(&Lab) -> Result<()>) {
    let lab = Lab::new(name).unwrap_or_else(|error| panic!("{error:?}"));
    if let Err(error) = test(&lab) {
        panic!("{error:?}");
    }
}

impl Lab {
    /// Raises the underlay of the lab `name` (lower-case letters, digits, dashes).
    ///
    /// What a killed run of the same lab left is swept first. Fails when a living process has the same lab, naming it,
    /// and without root.
    pub fn new(name: &str) -> Result<Self> {
        require_root()?;
        let site = Site::open(name)?;
        let vxlan = Counter::install(&site, "vxlan", "udp dport 8472").inspect_err(|_| site.close())?;
        Ok(Self { site, vxlan })
    }

    /// Removes a lab that was kept, or that a killed process left. Fails when a living process has it.
    pub fn remove(name: &str) -> Result<()> {
        require_root()?;
        let _claim = Claim::take(name)?;
        claim::sweep(name)
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.site.name
    }

    /// A node: a host on the underlay that has pods. The first host of a lab is 192.0.2.11 and 2001:db8::11, and so on;
    /// a host that is removed and made again has its old addresses.
    pub fn node(&self, name: &str) -> Result<Node> {
        Host::on_underlay(&self.site, name).map(Node::new)
    }

    /// A host on the underlay that is no node of the cluster.
    pub fn outside(&self, name: &str) -> Result<Host> {
        Host::on_underlay(&self.site, name)
    }

    /// A real etcd and kube-apiserver on the underlay, with an empty cluster. One for each lab.
    pub fn control_plane(&self) -> Result<ControlPlane> {
        ControlPlane::start_new(&self.site)
    }

    /// A real etcd on the underlay, without an API server and without keys. One for each lab.
    pub fn etcd(&self) -> Result<Etcd> {
        Etcd::start_new(&self.site, false)
    }

    /// The same, with TLS and for clients with a certificate only.
    pub fn etcd_with_tls(&self) -> Result<Etcd> {
        Etcd::start_new(&self.site, true)
    }

    /// A folder for files, such as the manifests that a daemon with `source: directory` watches.
    pub fn folder(&self, name: &str) -> Result<Folder> {
        Folder::create(self.site.folder.join(name))
    }

    /// VXLAN packets (UDP port 8472, both families) that hosts have sent over the underlay so far.
    pub fn vxlan_packets(&self) -> Result<u64> {
        self.vxlan.packets()
    }

    /// Counts from now on what hosts send over the underlay and what matches an nft expression, such as
    /// `ip daddr 10.244.0.0/16`.
    pub fn counter(&self, name: &str, expression: &str) -> Result<Counter> {
        Counter::install(&self.site, name, expression)
    }

    /// Leaves the lab and its processes standing when dropped, until [`Lab::remove`] or the next lab of this name.
    /// For processes to outlive this one, call it before they are started.
    pub fn keep(&self) {
        self.site.kept.store(true, Ordering::Relaxed);
    }

    /// Where the logs are, one file for each process name.
    pub fn logs(&self) -> std::path::PathBuf {
        self.site.logs()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        interrupt::rest_if_interrupted();
        if std::thread::panicking() {
            eprint!("{}", tails(&self.site.logs()).unwrap_or_else(|error| format!("no logs: {error:#}\n")));
        }
        if self.site.is_kept() {
            self.site.leave();
        } else {
            self.site.close();
        }
    }
}

/// The ends of all logs, each under its file's name.
fn tails(logs: &Path) -> Result<String> {
    let entries = fs::read_dir(logs).with_context(|| format!("read {}", logs.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    let mut tails = String::new();
    for path in paths {
        let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        tails += &format!("--- {name}, last {} of {} lines\n{}\n", tail.len(), lines.len(), tail.join("\n"));
    }
    Ok(tails)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_all_logs_are_shown_by_name() {
        let folder = std::env::temp_dir().join(format!("podway-testkit-tails-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("node-1.podway.log"), "started\nstopped\n").unwrap();
        let many: String = (1..=50).map(|line| format!("line {line}\n")).collect();
        fs::write(folder.join("client.flood.log"), many).unwrap();
        let tails = tails(&folder).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert!(tails.starts_with("--- client.flood.log, last 40 of 50 lines\nline 11\n"), "{tails}");
        assert!(tails.ends_with("--- node-1.podway.log, last 2 of 2 lines\nstarted\nstopped\n"), "{tails}");
    }
}
