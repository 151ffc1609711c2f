//! Network namespaces as `ip netns` keeps them: bind-mounted under `/run/netns`.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

const FOLDER: &str = "/run/netns";

/// A new namespace takes over some of the machine's settings (net.core.devconf_inherit_init_net); a lab is the same
/// everywhere. Without duplicate address detection, addresses are usable at once.
const SYSCTLS: [(&str, &str); 4] = [
    ("net.ipv4.ip_forward", "0"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
];

/// A network namespace by its name; the kernel's object lives until [`Namespace::delete`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn named(name: String) -> Self {
        Self { name }
    }

    /// Creates the namespace with its loopback device and [`SYSCTLS`].
    pub(crate) fn create(self) -> Result<Self> {
        ip(&[], &format!("netns add {}", self.name))?;
        for (key, value) in SYSCTLS {
            self.sysctl(key, value)?;
        }
        self.ip("link set lo up")?;
        Ok(self)
    }

    /// Every namespace of this machine whose name starts with `prefix`.
    pub(crate) fn starting_with(prefix: &str) -> Result<Vec<Self>> {
        let Ok(entries) = fs::read_dir(FOLDER) else { return Ok(Vec::new()) };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names: Vec<String> = names.collect::<Result<_>>().context("list network namespaces")?;
        Ok(names.into_iter().filter(|name| name.starts_with(prefix)).map(Self::named).collect())
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The open namespace, for `setns`.
    pub(crate) fn open(&self) -> Result<File> {
        let path = PathBuf::from(FOLDER).join(&self.name);
        File::open(&path).with_context(|| format!("network namespace {} is not there", self.name))
    }

    /// Runs `work` on a thread that is inside the namespace.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = self.open()?;
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("enter {}", self.name))?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs lines of `ip -batch` inside the namespace.
    pub(crate) fn ip(&self, lines: &str) -> Result<()> {
        ip(&["-n", &self.name], lines)
    }

    /// Writes a sysctl such as `net.ipv4.ip_forward` inside the namespace.
    pub(crate) fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        if !key.starts_with("net.") {
            bail!("{key} is not a sysctl of a network namespace");
        }
        let path = PathBuf::from("/proc/sys").join(key.replace('.', "/"));
        let written = self.enter(|| fs::write(&path, value))?;
        written.with_context(|| format!("write {value} to {} in {}", path.display(), self.name))
    }

    /// Deletes the namespace with all its devices; the other end of a veth pair may outlive it for a moment.
    pub(crate) fn delete(&self) -> Result<()> {
        ip(&[], &format!("netns del {}", self.name))
    }
}

/// Runs one `ip -batch`; the error carries what `ip` said and the lines it was given.
fn ip(options: &[&str], lines: &str) -> Result<()> {
    let output = run_with_input(Command::new("ip").args(options).args(["-batch", "-"]), lines)?;
    if !output.status.success() {
        bail!("ip {}: {}in\n{lines}", options.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Runs a command to its end with `input` on its standard input.
pub(crate) fn run_with_input(command: &mut Command, input: &str) -> Result<std::process::Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("write to {program}"))?;
    }
    child.wait_with_output().with_context(|| format!("wait for {program}"))
}
