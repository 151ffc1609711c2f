//! `podway-probe`: small servers and senders for TCP and UDP that report who answered, from which source address they
//! were reached, and how fast.

mod greeting;
mod series;
mod serve;
mod stream;
mod tries;
mod udp_server;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use podway_testkit::{Lab, Transport};

use crate::tries::Target;

#[derive(Debug, Parser)]
#[command(
    version,
    about = "Sends and answers TCP and UDP, and reports who answered, from where, and how fast."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer every connection and datagram on these ports, both families, with a JSON line; then echo lines.
    Serve {
        /// What to call itself in the answers.
        #[arg(long)]
        name: String,
        /// TCP ports.
        #[arg(long)]
        tcp: Vec<u16>,
        /// UDP ports.
        #[arg(long)]
        udp: Vec<u16>,
    },
    /// Try a number of times, each time from a new socket.
    Send {
        #[command(flatten)]
        to: To,
        /// How many tries.
        #[arg(long, default_value_t = 1)]
        count: u32,
        /// Time between the beginnings of two tries, in milliseconds.
        #[arg(long, default_value_t = 0)]
        interval_ms: u64,
        /// How many tries are under way at once.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        parallel: u32,
    },
    /// Try from a new socket at every interval, however long earlier tries take, until stopped.
    Flood {
        #[command(flatten)]
        to: To,
        #[command(flatten)]
        pace: Pace,
    },
    /// Keep one socket and send a numbered message at every interval, until stopped.
    Stream {
        #[command(flatten)]
        to: To,
        #[command(flatten)]
        pace: Pace,
    },
    /// Raise or remove a lab by name.
    Lab {
        #[command(subcommand)]
        command: LabCommand,
    },
}

#[derive(Debug, Args)]
struct To {
    /// What to send.
    transport: TransportName,
    /// Where to, as `10.96.0.10:80` or `[fd00::10]:80`.
    address: SocketAddr,
    /// How long each try may take, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    timeout_ms: u64,
    /// Send datagrams from a socket that is not connected.
    #[arg(long)]
    unconnected: bool,
    /// Print one line about all tries instead of a JSON line for each.
    #[arg(long)]
    summary: bool,
}

#[derive(Debug, Args)]
struct Pace {
    /// Time between two messages, in milliseconds.
    #[arg(long, default_value_t = 10)]
    interval_ms: u64,
    /// Stop after so many seconds (default: at SIGTERM or Ctrl-C).
    #[arg(long)]
    seconds: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TransportName {
    Tcp,
    Udp,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Raise a lab with one node, and hold it until stopped.
    Hold {
        /// The lab's name.
        name: String,
    },
    /// Remove a lab that was kept, with all that runs in it.
    Remove {
        /// The lab's name.
        name: String,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Serve { name, tcp, udp } => serve::serve(&name, &tcp, &udp),
        Command::Send { to, count, interval_ms, parallel } => {
            let pace = series::Schedule { count, interval: Duration::from_millis(interval_ms), parallel };
            series::send(to.target(), pace, to.report())
        }
        Command::Flood { to, pace } => series::flood(to.target(), pace.limit()?, to.report()),
        Command::Stream { to, pace } => stream::stream(&to.target(), pace.limit()?, to.report()),
        Command::Lab { command: LabCommand::Hold { name } } => hold_lab(&name),
        Command::Lab { command: LabCommand::Remove { name } } => Lab::remove(&name),
    }
}

fn hold_lab(name: &str) -> Result<()> {
    let lab = Lab::new(name)?;
    let node = lab.node("node-1")?;
    let _server = node.serve("node-1", 8080)?;
    println!("holding {name}");
    loop {
        std::thread::park();
    }
}

impl To {
    fn target(&self) -> Target {
        let transport = match self.transport {
            TransportName::Tcp => Transport::Tcp,
            TransportName::Udp => Transport::Udp,
        };
        Target {
            transport,
            address: self.address,
            timeout: Duration::from_millis(self.timeout_ms),
            unconnected: self.unconnected,
        }
    }

    fn report(&self) -> series::Report {
        if self.summary { series::Report::Summary } else { series::Report::EachTry }
    }
}

impl Pace {
    fn limit(&self) -> Result<series::Limit> {
        series::Limit::new(Duration::from_millis(self.interval_ms), self.seconds.map(Duration::from_secs))
    }
}
