//! Serving and sending with `podway-probe` inside a host.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::answers::{Answer, Answers};
use crate::binaries::binary;
use crate::command::Command;
use crate::host::Host;
use crate::probe::Probe;
use crate::process::Process;

/// Starting a probe takes milliseconds; a busy machine gets this much on top of what the tries take.
const MARGIN: Duration = Duration::from_secs(10);

impl Host {
    /// Serves TCP and UDP on a port of every address, both families, answering with `name` and what it saw. Returns when
    /// the port is open.
    pub fn serve(&self, name: &str, port: u16) -> Result<Process> {
        let port = port.to_string();
        let command = self.probe("serve")?.args(["--name", name, "--tcp", &port, "--udp", &port]);
        let server = command.start(&format!("serve-{name}-{port}"))?;
        server.wait_for_log("serving", MARGIN)?;
        Ok(server)
    }

    /// Sends the probe's tries, each from a new socket, and returns when the last has ended.
    pub fn send(&self, probe: Probe) -> Result<Answers> {
        let command = self.probe("send")?.args(probe.counted_arguments());
        parse(&command.within(probe.longest() + MARGIN).run()?)
    }

    /// Opens a new socket for a try at every interval (default: 10 ms), however long the earlier ones take, until
    /// stopped.
    pub fn flood(&self, probe: Probe) -> Result<Running> {
        self.run_probe("flood", &probe)
    }

    /// Keeps one socket, sends a numbered message at every interval (default: 10 ms) and expects each back, until
    /// stopped. A TCP stream ends with its connection.
    pub fn stream(&self, probe: Probe) -> Result<Running> {
        self.run_probe("stream", &probe)
    }

    fn run_probe(&self, subcommand: &str, probe: &Probe) -> Result<Running> {
        let output = self.site.fresh_path(subcommand);
        let log = self.site.logs().join(format!("{}.{subcommand}.log", self.name));
        let command = self.probe(subcommand)?.args(probe.arguments());
        let process = command.start_with_output(subcommand, log, Some(&output))?;
        Ok(Running { process, output })
    }

    fn probe(&self, subcommand: &str) -> Result<Command> {
        Ok(self.command(binary("podway-probe")?).arg(subcommand))
    }
}

/// A probe that sends until it is stopped.
#[derive(Debug)]
pub struct Running {
    process: Process,
    output: PathBuf,
}

impl Running {
    /// The tries that have ended so far.
    pub fn answers(&self) -> Result<Answers> {
        let text =
            fs::read_to_string(&self.output).with_context(|| format!("read {}", self.output.display()))?;
        let whole_lines = text.rfind('\n').map_or("", |end| &text[..end]);
        parse(whole_lines)
    }

    /// Whether it still sends; a TCP stream stops with its connection.
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Stops sending, waits for the tries under way, and returns all of them.
    pub fn stop(self) -> Result<Answers> {
        let status = self.process.stop()?;
        if !status.success() {
            bail!("the probe failed ({status})\n{}", self.process.log());
        }
        self.answers()
    }
}

fn parse(lines: &str) -> Result<Answers> {
    let read =
        |line: &str| serde_json::from_str::<Answer>(line).with_context(|| format!("no answer: {line}"));
    lines.lines().map(read).collect()
}
