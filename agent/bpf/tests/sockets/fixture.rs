//! A node of its own for each test: a network and a mount namespace, and a scratch cgroup.
//!
//! The namespaces go with the test's thread. /sys/fs/bpf is an empty directory at first, and whatever is mounted there
//! stays in the mount namespace.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, thread};

use aya::maps::{HashMap, Map, MapData};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use podway_bpf::{BpfDataplane, DEFAULT_PIN_DIR, Settings, cgroup2_root};
use podway_ebpf_common::{SlotKey, Target};
use podway_proxy::{Frontend, Masquerade, Pool, Protocol, RowDelta};

use crate::client::{Client, Outcome};

/// Drop order: the cgroup goes last.
pub(crate) struct Node {
    pub(crate) settings: Settings,
    cgroup: Cgroup,
}

impl Node {
    pub(crate) fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root: namespaces, a cgroup and eBPF");
        if let Err(error) = BpfDataplane::check() {
            panic!("this test needs eBPF: {error}");
        }
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        mount(Some("tmpfs"), "/sys/fs/bpf", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("this test needs ip");
        assert!(up.success());
        let cgroup = Cgroup::new();
        let settings = Settings { cgroup: cgroup.0.clone(), pin_dir: DEFAULT_PIN_DIR.into() };
        Self { settings, cgroup }
    }

    pub(crate) fn open(&self) -> BpfDataplane {
        BpfDataplane::open(&self.settings).unwrap()
    }

    /// A dataplane that translates `rows`.
    pub(crate) fn attached(&self, rows: impl IntoIterator<Item = (Frontend, Pool)>) -> BpfDataplane {
        let mut dataplane = self.open();
        dataplane.apply(&set(rows)).unwrap();
        dataplane.attach().unwrap();
        dataplane
    }

    /// Connects once from inside the cgroup.
    pub(crate) fn connect(&self, protocol: Protocol, destination: SocketAddr) -> Outcome {
        self.start(protocol, destination, 1).outcomes()[0]
    }

    pub(crate) fn start(&self, protocol: Protocol, destination: SocketAddr, times: usize) -> Client {
        Client::start(&self.cgroup.0, protocol, destination, times)
    }
}

/// A cgroup that is removed with its guard.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let root = cgroup2_root().unwrap();
        remove_abandoned(&root);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Fails only while a client still runs, after a panic; the next run removes it.
        let _ = fs::remove_dir(&self.0);
    }
}

const PREFIX: &str = "podway-bpf-test-";

/// Removes the cgroups of test processes that were killed.
fn remove_abandoned(root: &Path) {
    for entry in fs::read_dir(root).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Serves until the test process ends; whoever asks is told `address`.
pub(crate) fn serve(protocol: Protocol, address: &str) -> SocketAddr {
    match protocol {
        Protocol::Tcp => serve_tcp(TcpListener::bind(address).unwrap()),
        Protocol::Udp => serve_udp(UdpSocket::bind(address).unwrap()),
        Protocol::Sctp => panic!("no SCTP here"),
    }
}

fn serve_tcp(listener: TcpListener) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that has gone has its own outcome.
            let _ = stream.and_then(|mut stream| write!(stream, "{address}"));
        }
    });
    address
}

fn serve_udp(socket: UdpSocket) -> SocketAddr {
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut question = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut question) {
            let _ = socket.send_to(address.to_string().as_bytes(), client);
        }
    });
    address
}

/// The map of slots, to be tampered with.
pub(crate) fn pinned_slots(settings: &Settings) -> HashMap<MapData, SlotKey, Target> {
    let pinned = MapData::from_pin(settings.pin_dir.join("v1/slots")).unwrap();
    Map::from_map_data(pinned).unwrap().try_into().unwrap()
}

/// The frontend at `address`, such as `10.96.0.10:80`.
pub(crate) fn frontend(protocol: Protocol, address: &str) -> Frontend {
    let address: SocketAddr = address.parse().unwrap();
    Frontend { address: address.ip(), protocol, port: address.port() }
}

/// A pool of these targets.
pub(crate) fn balance(targets: impl IntoIterator<Item = SocketAddr>) -> Pool {
    Pool::Balance { targets: targets.into_iter().collect(), masquerade: Masquerade::UnlessPod }
}

/// A change that sets these rows.
pub(crate) fn set(rows: impl IntoIterator<Item = (Frontend, Pool)>) -> RowDelta {
    let mut delta = RowDelta::default();
    delta.frontends.set = BTreeMap::from_iter(rows);
    delta
}
