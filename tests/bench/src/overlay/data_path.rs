//! What two pods on two nodes can send each other.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podway_testkit::{ControlPlane, Lab, Node, Pod, Process};

use super::peers::{POD_NETWORK, own_node};
use crate::contenders;

/// Rounds, of which the median counts; the contenders take turns in each.
const ROUNDS: usize = 7;

/// How long one contender is measured in one round, for each of the two figures.
const TURN: Duration = Duration::from_secs(1);

/// What is sent at once.
const CHUNK: usize = 64 * 1024;

const CONNECTIONS_PORT: u16 = 7001;
const BYTES_PORT: u16 = 7002;

/// One way between two pods, measured.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// From the start of the two daemons until the first connection.
    pub(super) first_packet: Option<Duration>,
    /// Connect, one byte there and back, close: in a second.
    pub(super) connections: f64,
    /// One connection's throughput.
    pub(super) bits: f64,
}

/// All ways, bare VXLAN first.
pub(super) struct DataPath {
    pub(super) rows: Vec<Row>,
}

/// Two nodes with a pod each.
struct Pair {
    name: &'static str,
    nodes: [Node; 2],
    client: Pod,
    server: Pod,
    first_packet: Option<Duration>,
    _daemons: Vec<Process>,
    _servers: Servers,
}

impl DataPath {
    /// Sets everything up, measures, and takes it down.
    pub(super) fn new_measured() -> Result<Self> {
        let lab = Lab::new("bench-overlay-path")?;
        let plane = lab.control_plane()?;
        plane.apply(contenders::CLAIMS)?;
        let mut pairs = [
            Pair::new(&lab, "bare VXLAN", 10)?,
            Pair::new(&lab, "podway", 20)?,
            Pair::new(&lab, "flannel", 30)?,
        ];
        pairs[0].bare_vxlan()?;
        pairs[1].with_daemons(&plane, |node| {
            let range = format!("network.podNetworks={POD_NETWORK}");
            // flannel's half of the work alone.
            let network = "services.enabled=false".to_owned();
            contenders::podway(node, &[contenders::kubeconfig(&plane), range, network])
        })?;
        pairs[2].behind_bridges()?;
        pairs[2].with_daemons(&plane, |node| contenders::flanneld(node, &plane, POD_NETWORK))?;
        let mut samples = pairs.each_ref().map(|_| (Vec::new(), Vec::new()));
        for _ in 0..ROUNDS {
            for (pair, (connections, bits)) in pairs.iter().zip(&mut samples) {
                connections.push(pair.connections()?);
                bits.push(pair.bits()?);
            }
        }
        let rows = pairs.iter().zip(samples).map(|(pair, (connections, bits))| Row {
            name: pair.name,
            first_packet: pair.first_packet,
            connections: median(connections),
            bits: median(bits),
        });
        Ok(Self { rows: rows.collect() })
    }
}

impl Pair {
    /// Nodes with the subnets 10.250.`number`.0/24 and the one after it.
    fn new(lab: &Lab, name: &'static str, number: u8) -> Result<Self> {
        let nodes = [lab.node(&format!("n{number}"))?, lab.node(&format!("n{}", number + 1))?];
        let pod = |at: usize, node: &Node| {
            let subnet = number + u8::from(at == 1);
            node.pod(&format!("p{subnet}"), [format!("10.250.{subnet}.5")])
        };
        let (client, server) = (pod(0, &nodes[0])?, pod(1, &nodes[1])?);
        let servers = Servers::start(&server)?;
        Ok(Self { name, nodes, client, server, first_packet: None, _daemons: Vec::new(), _servers: servers })
    }

    /// The least that joins two nodes.
    fn bare_vxlan(&mut self) -> Result<()> {
        let macs = ["0a:00:00:00:00:01", "0a:00:00:00:00:02"];
        let [one, two] = &self.nodes;
        for (from, to, own_mac, mac, pod) in
            [(one, two, macs[0], macs[1], &self.server), (two, one, macs[1], macs[0], &self.client)]
        {
            let (subnet, gateway) = (subnet(pod), gateway_of_route(pod));
            from.ip(&format!(
                "link add vxlan0 address {own_mac} mtu 1450 type vxlan id 1 dev eth0 local {} dstport 8472 nolearning\n\
                 link set vxlan0 up\n\
                 neigh add {gateway} lladdr {mac} dev vxlan0 nud permanent\n\
                 route add {subnet} via {gateway} dev vxlan0 onlink",
                from.ipv4()
            ))?;
            let fdb =
                ["fdb", "append", mac, "dev", "vxlan0", "dst", &to.ipv4().to_string(), "self", "permanent"];
            from.command("bridge").args(fdb).run()?;
        }
        await_connection(&self.client, self.server.ipv4_at(CONNECTIONS_PORT))
    }

    /// Pods as flannel's CNI configuration connects them: behind the bridge cni0, which has the gateway's address.
    fn behind_bridges(&self) -> Result<()> {
        for (node, pod) in self.nodes.iter().zip([&self.client, &self.server]) {
            let (device, gateway) = (pod.node_device(), gateway(pod));
            node.ip(&format!(
                "link add cni0 mtu 1450 type bridge\n\
                 link set cni0 up\n\
                 addr del {gateway}/32 dev {device}\n\
                 link set {device} master cni0\n\
                 addr add {gateway}/24 dev cni0"
            ))?;
        }
        Ok(())
    }

    fn with_daemons(&mut self, plane: &ControlPlane, start: impl Fn(&Node) -> Result<Process>) -> Result<()> {
        for (node, pod) in self.nodes.iter().zip([&self.client, &self.server]) {
            let number = octets(pod)[2];
            plane.apply(own_node(node, number))?;
        }
        let started = Instant::now();
        self._daemons = self.nodes.iter().map(start).collect::<Result<_>>()?;
        await_connection(&self.client, self.server.ipv4_at(CONNECTIONS_PORT))
            .with_context(|| self._daemons.iter().map(contenders::last_lines).collect::<String>())?;
        self.first_packet = Some(started.elapsed());
        Ok(())
    }

    fn connections(&self) -> Result<f64> {
        let server = self.server.ipv4_at(CONNECTIONS_PORT);
        self.client.enter(|| {
            let started = Instant::now();
            let mut count = 0_u32;
            while started.elapsed() < TURN {
                there_and_back(server, Duration::from_secs(2))?;
                count += 1;
            }
            Ok(f64::from(count) / started.elapsed().as_secs_f64())
        })?
    }

    fn bits(&self) -> Result<f64> {
        let server = self.server.ipv4_at(BYTES_PORT);
        self.client.enter(|| {
            let mut stream = TcpStream::connect(server)?;
            let chunk = vec![0; CHUNK];
            let (started, mut sent) = (Instant::now(), 0_usize);
            while started.elapsed() < TURN {
                stream.write_all(&chunk)?;
                sent += CHUNK;
            }
            Ok(sent as f64 * 8.0 / started.elapsed().as_secs_f64())
        })?
    }
}

/// One connection. It is closed by a reset: ports that wait for late packets would run out.
fn there_and_back(server: SocketAddr, patience: Duration) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(&[1])?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok(nix::sys::socket::setsockopt(
        &stream,
        nix::sys::socket::sockopt::Linger,
        &nix::libc::linger { l_onoff: 1, l_linger: 0 },
    )?)
}

fn await_connection(client: &Pod, server: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + contenders::PATIENCE;
    client.enter(|| {
        while Instant::now() < deadline {
            if there_and_back(server, Duration::from_millis(20)).is_ok() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(1));
        }
        bail!("no connection to {server}")
    })?
}

/// Threads that answer in a pod, until dropped.
struct Servers {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    fn start(pod: &Pod) -> Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (port, serve) in [(CONNECTIONS_PORT, echo as fn(TcpStream)), (BYTES_PORT, swallow)] {
            let listener = pod.enter(|| TcpListener::bind((IpAddr::from([0, 0, 0, 0]), port)))??;
            listener.set_nonblocking(false)?;
            let ended = ended.clone();
            threads.push(thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    serve(stream);
                }
            }));
        }
        Ok(Self { ended, threads })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // The threads sit in accept(); they end with the process at the latest.
        self.ended.store(true, Ordering::Relaxed);
        self.threads.clear();
    }
}

fn echo(mut stream: TcpStream) {
    let mut byte = [0];
    if stream.read_exact(&mut byte).is_ok() {
        // The client may be gone.
        let _ = stream.write_all(&byte);
        let _ = stream.read(&mut byte);
    }
}

fn swallow(mut stream: TcpStream) {
    let mut chunk = vec![0; CHUNK];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return,
            Err(error) if error.kind() != ErrorKind::Interrupted => return,
            _ => {}
        }
    }
}

fn octets(pod: &Pod) -> [u8; 4] {
    match pod.ipv4() {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => unreachable!("ipv4() is IPv4"),
    }
}

fn subnet(pod: &Pod) -> String {
    let [a, b, c, _] = octets(pod);
    format!("{a}.{b}.{c}.0/24")
}

fn gateway(pod: &Pod) -> String {
    let [a, b, c, _] = octets(pod);
    format!("{a}.{b}.{c}.1")
}

/// flannel's: the network address.
fn gateway_of_route(pod: &Pod) -> String {
    let [a, b, c, _] = octets(pod);
    format!("{a}.{b}.{c}.0")
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
