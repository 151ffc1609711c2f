//! What a lab and the handles of its hosts share: the underlay, the names taken, and whether it still stands.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};

use crate::claim::{self, Claim};
use crate::namespace::Namespace;
use crate::{cgroup, interrupt};

/// The bridge in the underlay's namespace; it has the gateway address of both families, and leads nowhere.
const BRIDGE: &str = "br0";
const GATEWAY: u8 = 1;
/// Hosts are numbered from here in the order they first appear; a host that comes back has its old number.
const FIRST_HOST: u8 = 11;
/// The longest name of a network device.
const DEVICE_NAME: usize = 15;

#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) cgroup: PathBuf,
    pub(crate) underlay: Namespace,
    /// Set: processes outlive this one, and the lab is not removed at its end.
    pub(crate) kept: AtomicBool,
    files: AtomicU64,
    standing: Mutex<Standing>,
}

/// Held while something is created, so that a removal sees it whole or refuses it.
#[derive(Debug)]
pub(crate) struct Standing {
    claim: Option<Claim>,
    numbers: BTreeMap<String, u8>,
}

impl Site {
    /// Claims the name, sweeps what a killed run left, and raises the underlay.
    pub(crate) fn open(name: &str) -> Result<Arc<Self>> {
        let claim = Claim::take(name)?;
        claim::sweep(name).with_context(|| format!("sweep what an earlier run of lab {name} left"))?;
        let site = Arc::new(Self {
            name: name.to_owned(),
            folder: claim::folder(name),
            cgroup: cgroup::of_lab(name)?,
            underlay: Namespace::named(format!("{}underlay", claim::namespace_prefix(name))),
            kept: AtomicBool::new(false),
            files: AtomicU64::new(0),
            standing: Mutex::new(Standing { claim: Some(claim), numbers: BTreeMap::new() }),
        });
        interrupt::watch(&site)?;
        site.raise_underlay().inspect_err(|_| site.close())?;
        Ok(site)
    }

    /// Holds off a removal while something is created; fails when the lab has been removed.
    pub(crate) fn standing(&self) -> Result<MutexGuard<'_, Standing>> {
        let standing = self.lock();
        if standing.claim.is_none() {
            bail!("lab {} has been removed", self.name);
        }
        Ok(standing)
    }

    /// Removes everything and gives up the name. A second call does nothing.
    pub(crate) fn close(&self) {
        let mut standing = self.lock();
        if standing.claim.is_some() {
            if let Err(error) = claim::sweep(&self.name) {
                eprintln!("lab {} is not removed: {error:#}", self.name);
            }
            standing.claim = None;
        }
    }

    /// Gives up the name and leaves everything standing.
    pub(crate) fn leave(&self) {
        self.lock().claim = None;
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    /// Creates a namespace of this lab; fails when a host of that name stands.
    pub(crate) fn namespace(&self, host: &str) -> Result<Namespace> {
        claim::check_name(host)?;
        self.namespace_of(host).create().with_context(|| format!("create host {host} in lab {}", self.name))
    }

    pub(crate) fn namespace_of(&self, host: &str) -> Namespace {
        Namespace::named(format!("{}{host}", claim::namespace_prefix(&self.name)))
    }

    /// Connects a namespace to the underlay with its `eth0`, and returns the addresses it got.
    pub(crate) fn connect(&self, host: &str, namespace: &Namespace, number: u8) -> Result<Vec<IpAddr>> {
        let (v4, v6) = addresses(number);
        let (gateway_v4, gateway_v6) = addresses(GATEWAY);
        self.underlay.ip(&format!(
            "link add {host} type veth peer name eth0 netns {}\nlink set {host} master {BRIDGE} up",
            namespace.name()
        ))?;
        namespace.ip(&format!(
            "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via {gateway_v4}\nroute add default via {gateway_v6}"
        ))?;
        Ok(vec![v4.into(), v6.into()])
    }

    /// A fresh path in the lab's folder.
    pub(crate) fn fresh_path(&self, kind: &str) -> PathBuf {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        self.folder.join("files").join(format!("{number}.{kind}"))
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raise_underlay(&self) -> Result<()> {
        let _standing = self.standing()?;
        for folder in [self.logs(), self.folder.join("files")] {
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        cgroup::create(&self.cgroup)?;
        self.namespace("underlay")?;
        let (v4, v6) = addresses(GATEWAY);
        // Without multicast snooping: neighbour discovery must not depend on a querier.
        self.underlay.ip(&format!(
            "link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0\naddr add {v4}/24 dev {BRIDGE}\n\
             addr add {v6}/64 dev {BRIDGE} nodad\nlink set {BRIDGE} up"
        ))
    }
}

impl Standing {
    /// The number of a host on the underlay, which decides its addresses.
    pub(crate) fn number(&mut self, host: &str) -> Result<u8> {
        if host.len() > DEVICE_NAME {
            bail!("{host} is longer than the {DEVICE_NAME} characters of a device name");
        }
        if let Some(number) = self.numbers.get(host) {
            return Ok(*number);
        }
        let taken = u8::try_from(self.numbers.len())?;
        let number = FIRST_HOST.checked_add(taken).filter(|number| *number < u8::MAX);
        let number = number.context("the underlay is full")?;
        self.numbers.insert(host.to_owned(), number);
        Ok(number)
    }
}

/// The underlay addresses of a number, from the documentation ranges: 11 is 192.0.2.11 and 2001:db8::11.
pub(crate) fn addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    let decimal_as_hex =
        u16::from(number / 100) * 0x100 + u16::from(number / 10 % 10) * 0x10 + u16::from(number % 10);
    (Ipv4Addr::new(192, 0, 2, number), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, decimal_as_hex))
}

/// Where a host's files are.
pub(crate) fn host_folder(site: &Site, host: &str) -> PathBuf {
    Path::new(&site.folder).join("hosts").join(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_show_the_same_digits() {
        let (v4, v6) = addresses(123);
        assert_eq!((v4.to_string(), v6.to_string()), ("192.0.2.123".into(), "2001:db8::123".into()));
    }
}
