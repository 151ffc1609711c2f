//! The way to an etcd on which answers get lost.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use podway_testkit::Host;

/// etcd's port.
const ETCD: u16 = 2379;

/// What only the writing of a lease says to etcd, as plain text in its frame.
const WRITE: &[u8] = b"PublicIP";

/// Long enough for an etcd of one member to write.
const COMMIT: Duration = Duration::from_millis(500);

const LOOK: Duration = Duration::from_millis(20);

/// A TCP proxy on a host that hands everything through, until it is told to lose the answer to a write.
pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// The next write is carried out and not answered.
    armed: AtomicBool,
    lost: AtomicUsize,
    ended: AtomicBool,
}

impl Proxy {
    /// Listens on `host` for connections to the etcd on `etcd`.
    pub(crate) fn start(host: &Host, etcd: &Host) -> Result<Self> {
        let (state, etcd) = (Arc::new(State::default()), etcd.ipv4_at(ETCD));
        let listening = state.clone();
        // Threads stay in the namespace of the one that began them.
        let address = host.enter(move || -> Result<SocketAddr> {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            thread::spawn(move || listening.serve(&listener, etcd));
            Ok(address)
        })??;
        Ok(Self { address, state })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next write of a lease reaches etcd, and then the connection ends.
    pub(crate) fn lose_the_next_answer(&self) {
        self.state.armed.store(true, Ordering::SeqCst);
    }

    /// How many answers were lost.
    pub(crate) fn lost(&self) -> usize {
        self.state.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
    }
}

impl State {
    fn serve(self: Arc<Self>, listener: &TcpListener, etcd: SocketAddr) {
        while !self.ended.load(Ordering::SeqCst) {
            match listener.accept() {
                // Whoever connects sees what becomes of it.
                Ok((client, _)) => drop(self.clone().join(client, etcd)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(LOOK),
                Err(_) => return,
            }
        }
    }

    fn join(self: Arc<Self>, client: TcpStream, etcd: SocketAddr) -> io::Result<()> {
        client.set_nonblocking(false)?;
        let server = TcpStream::connect(etcd)?;
        let silent = Arc::new(AtomicBool::new(false));
        let (answers, to_client, swallow) = (server.try_clone()?, client.try_clone()?, silent.clone());
        thread::spawn(move || {
            let deliver = |bytes: &[u8]| match swallow.load(Ordering::SeqCst) {
                true => Ok(()),
                false => (&to_client).write_all(bytes),
            };
            hand_through(&answers, &to_client, deliver)
        });
        thread::spawn(move || {
            let deliver = |bytes: &[u8]| {
                let is_write = bytes.windows(WRITE.len()).any(|text| text == WRITE);
                let lose = is_write && self.armed.swap(false, Ordering::SeqCst);
                silent.fetch_or(lose, Ordering::SeqCst);
                (&server).write_all(bytes)?;
                if lose {
                    thread::sleep(COMMIT);
                    self.lost.fetch_add(1, Ordering::SeqCst);
                    return Err(ErrorKind::ConnectionAborted.into());
                }
                Ok(())
            };
            hand_through(&client, &server, deliver)
        });
        Ok(())
    }
}

/// Until one side ends, or `deliver` has the connection end.
fn hand_through(mut from: &TcpStream, to: &TcpStream, deliver: impl Fn(&[u8]) -> io::Result<()>) {
    let mut buffer = [0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if deliver(&buffer[..read]).is_err() {
            break;
        }
    }
    // One that has ended already is as wanted.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
