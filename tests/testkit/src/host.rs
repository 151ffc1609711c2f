//! One machine of the lab, as far as the network is concerned: a namespace, a cgroup, addresses.

use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::cgroup;
use crate::command::Command;
use crate::namespace::Namespace;
use crate::site::{Site, host_folder};

/// A host of the lab. [`Node`](crate::Node) and [`Pod`](crate::Pod) are hosts with more to them.
///
/// A handle: clones mean the same host, and dropping one does not remove it.
#[derive(Debug, Clone)]
pub struct Host {
    pub(crate) site: Arc<Site>,
    pub(crate) name: String,
    pub(crate) namespace: Namespace,
    pub(crate) cgroup: PathBuf,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Host {
    pub(crate) fn on_underlay(site: &Arc<Site>, name: &str) -> Result<Self> {
        let mut standing = site.standing()?;
        let number = standing.number(name)?;
        Self::at(site, name, number)
    }

    /// A host with a fixed number on the underlay. The caller holds the site standing.
    pub(crate) fn at(site: &Arc<Site>, name: &str, number: u8) -> Result<Self> {
        let cgroup = site.cgroup.join(name);
        let namespace = site.namespace(name)?;
        cgroup::create(&cgroup)?;
        let addresses = site.connect(name, &namespace, number)?;
        Ok(Self { site: site.clone(), name: name.to_owned(), namespace, cgroup, addresses })
    }

    /// The host's name in the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its namespace, for `ip netns exec`.
    pub fn netns(&self) -> &str {
        self.namespace.name()
    }

    /// Its cgroup (version 2), which holds every process started here; a node's holds those of its pods as well.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Its addresses in the order they were given.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its IPv4 address. Panics when it has none.
    #[track_caller]
    pub fn ipv4(&self) -> IpAddr {
        self.address(IpAddr::is_ipv4).unwrap_or_else(|| panic!("{} has no IPv4 address", self.name))
    }

    /// Its IPv6 address. Panics when it has none.
    #[track_caller]
    pub fn ipv6(&self) -> IpAddr {
        self.address(IpAddr::is_ipv6).unwrap_or_else(|| panic!("{} has no IPv6 address", self.name))
    }

    /// A port of its IPv4 address. Panics when it has none.
    #[track_caller]
    pub fn ipv4_at(&self, port: u16) -> SocketAddr {
        (self.ipv4(), port).into()
    }

    /// A port of its IPv6 address. Panics when it has none.
    #[track_caller]
    pub fn ipv6_at(&self, port: u16) -> SocketAddr {
        (self.ipv6(), port).into()
    }

    /// A program to run in this host: in its namespace and its cgroup, ended with the lab.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Command::new(self.clone(), program.as_ref())
    }

    /// Runs `work` on a thread inside the host's namespace, though not in its cgroup.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.namespace.enter(work)
    }

    /// Runs one or more lines of `ip -batch` in the host, such as `route add 10.0.0.0/8 via 192.0.2.11`.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.namespace.ip(lines)
    }

    /// Sets a sysctl of the host's namespace, such as `net.ipv4.ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.namespace.sysctl(key, value)
    }

    /// A folder of the host's own, for configuration and state.
    pub fn folder(&self) -> Result<PathBuf> {
        let folder = host_folder(&self.site, &self.name);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(folder)
    }

    /// A BPF file system of the host's own, mounted on first use.
    pub fn bpffs(&self) -> Result<PathBuf> {
        let path = self.folder()?.join("bpf");
        let _standing = self.site.standing()?;
        if !path.exists() {
            fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
            let mounted = mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>);
            mounted.with_context(|| format!("mount bpffs at {}", path.display()))?;
        }
        Ok(path)
    }

    fn address(&self, family: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(family)
    }
}
