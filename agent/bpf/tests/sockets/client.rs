//! A process in the scratch cgroup that connects: this very test binary, run again.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{env, fs};

use podway_proxy::Protocol;

const ORDER: &str = "PODWAY_TEST_CLIENT";
const PREFIX: &str = "client: ";
/// Far more than a loopback answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of a connection: the answer, which is the server's address, or the error.
pub(crate) type Outcome = Result<SocketAddr, io::ErrorKind>;

/// A client at work.
pub(crate) struct Client {
    process: Child,
    /// Reads along, or a client with many outcomes would wait for ever.
    output: JoinHandle<String>,
}

impl Client {
    /// Connects to `destination` from inside `cgroup`, `times` times one after the other.
    pub(crate) fn start(cgroup: &Path, protocol: Protocol, destination: SocketAddr, times: usize) -> Self {
        let order = format!("{} {protocol} {destination} {times}", cgroup.display());
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--ignored", "--exact", "client::client", "--nocapture"])
            .env(ORDER, order)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = process.stdout.take().unwrap();
        Self { process, output: thread::spawn(|| io::read_to_string(stdout).unwrap()) }
    }

    /// Whether it is done.
    pub(crate) fn is_finished(&self) -> bool {
        self.output.is_finished()
    }

    /// The outcomes in order.
    pub(crate) fn outcomes(mut self) -> Vec<Outcome> {
        let status = self.process.wait().unwrap();
        let output = self.output.join().unwrap();
        assert!(status.success(), "the client failed, {status}: {output}");
        let lines = output.lines().filter_map(|line| line.split_once(PREFIX));
        lines.map(|(_, outcome)| parse(outcome)).collect()
    }
}

fn parse(outcome: &str) -> Outcome {
    match outcome.split_once(' ').unwrap() {
        ("answer", address) => Ok(address.parse().unwrap()),
        ("errno", number) => Err(io::Error::from_raw_os_error(number.parse().unwrap()).kind()),
        _ => panic!("not an outcome: {outcome}"),
    }
}

#[test]
#[ignore = "a part of the other tests, which run it in a process of its own"]
fn client() {
    let order = env::var(ORDER).expect("the other tests say what to connect to");
    let [cgroup, protocol, destination, times] = order.split(' ').collect::<Vec<_>>()[..] else {
        panic!("not an order: {order}");
    };
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0").unwrap();
    for _ in 0..times.parse().unwrap() {
        match connect(protocol, destination.parse().unwrap()) {
            Ok(answer) => println!("\n{PREFIX}answer {answer}"),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or_else(|| panic!("no answer: {error}"));
                println!("\n{PREFIX}errno {errno}");
            }
        }
    }
}

/// Returns what the server says.
fn connect(protocol: &str, destination: SocketAddr) -> io::Result<String> {
    let mut answer = String::new();
    if protocol == "tcp" {
        let mut stream = TcpStream::connect(destination)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_to_string(&mut answer)?;
        return Ok(answer);
    }
    let any: SocketAddr = if destination.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = UdpSocket::bind(any)?;
    socket.connect(destination)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"who?")?;
    let mut buffer = [0; 64];
    let len = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
}
