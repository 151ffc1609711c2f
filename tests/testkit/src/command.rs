//! Programs that run inside a host.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid, write};

use crate::host::Host;
use crate::process::{self, Process};

/// What a program that ends by itself gets unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program to be run inside a host; like `std::process::Command`, built up and then started.
///
/// The program is in the host's namespace and cgroup from its first instruction on, in a process group of its own
/// (Ctrl-C at the terminal ends the lab, not the programs one by one), and is killed when this process dies, unless the
/// lab is kept.
#[derive(Debug)]
pub struct Command {
    host: Host,
    program: OsString,
    command: std::process::Command,
    stdin: Option<String>,
    patience: Duration,
}

/// What a program that has ended said.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Command {
    pub(crate) fn new(host: Host, program: &OsStr) -> Self {
        let command = std::process::Command::new(program);
        Self { host, program: program.to_owned(), command, stdin: None, patience: PATIENCE }
    }

    /// Adds one argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives the program this text as its standard input, which is empty otherwise.
    pub fn stdin(mut self, text: impl Into<String>) -> Self {
        self.stdin = Some(text.into());
        self
    }

    /// How long [`Command::output`] and [`Command::run`] wait for the end (default: a minute).
    pub fn within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Starts a program that goes on running; what it says goes to the log of this `name`, such as `podway`.
    pub fn start(self, name: &str) -> Result<Process> {
        let log = self.host.site.logs().join(format!("{}.{name}.log", self.host.name));
        self.start_with_output(name, log, None)
    }

    /// [`Command::start`] with the standard output in a file of its own.
    pub(crate) fn start_with_output(
        mut self,
        name: &str,
        log: PathBuf,
        stdout: Option<&Path>,
    ) -> Result<Process> {
        let stderr = append(&log)?;
        let said_before = stderr.metadata().with_context(|| format!("look at {}", log.display()))?.len();
        let stdout = match stdout {
            Some(path) => append(path)?,
            None => stderr.try_clone().with_context(|| format!("open {} twice", log.display()))?,
        };
        let child = self.spawn(stdout, stderr)?;
        Ok(Process::new(self.host, name, child, log, said_before))
    }

    /// Runs the program to its end, whatever its exit status. Kills it and fails when it takes too long.
    pub fn output(mut self) -> Result<Output> {
        let (stdout, stderr) = (self.host.site.fresh_path("stdout"), self.host.site.fresh_path("stderr"));
        let mut child = self.spawn(append(&stdout)?, append(&stderr)?)?;
        let ended = process::wait(&mut child, self.patience)?;
        if ended.is_none() {
            child.kill().and_then(|()| child.wait()).context("kill a program that hangs")?;
        }
        let output = (take(&stdout)?, take(&stderr)?);
        let Some(status) = ended else {
            bail!(
                "{} on {} ran for more than {:?}\n{}{}",
                self.line(),
                self.host.name,
                self.patience,
                output.0,
                output.1
            );
        };
        Ok(Output { status, stdout: output.0, stderr: output.1 })
    }

    /// Runs the program to its end and returns its standard output; an exit status other than 0 is an error.
    pub fn run(self) -> Result<String> {
        let what = format!("{} on {}", self.line(), self.host.name);
        let output = self.output()?;
        if !output.status.success() {
            bail!("{what}: {}\n{}{}", output.status, output.stdout, output.stderr);
        }
        Ok(output.stdout)
    }

    fn spawn(&mut self, stdout: File, stderr: File) -> Result<Child> {
        let stdin = match self.stdin.take() {
            Some(text) => Stdio::from(self.input(&text)?),
            None => Stdio::null(),
        };
        self.command.stdin(stdin).stdout(stdout).stderr(stderr).process_group(0);
        self.enter_host()?;
        let command = std::mem::replace(&mut self.command, std::process::Command::new(&self.program));
        let _standing = self.host.site.standing()?;
        spawn(command).with_context(|| format!("start {} on {}", self.program.display(), self.host.name))
    }

    fn enter_host(&mut self) -> Result<()> {
        let namespace = self.host.namespace.open()?;
        let cgroup = self.host.cgroup.join("cgroup.procs");
        let cgroup = OpenOptions::new()
            .write(true)
            .open(&cgroup)
            .with_context(|| format!("open {}", cgroup.display()))?;
        let parent = (!self.host.site.is_kept()).then(getpid);
        let enter = move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            write(&cgroup, b"0")?;
            parent.map_or(Ok(()), die_with)
        };
        // SAFETY: runs in the child between fork and exec, where only async-signal-safe calls are allowed: it makes
        // system calls, and neither allocates nor takes a lock.
        unsafe { self.command.pre_exec(enter) };
        Ok(())
    }

    fn input(&self, text: &str) -> Result<File> {
        let path = self.host.site.fresh_path("stdin");
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        Ok(file)
    }

    fn line(&self) -> String {
        let arguments = self.command.get_args().map(|argument| format!(" {}", argument.display()));
        format!(
            "{}{}",
            Path::new(&self.program).file_name().unwrap_or_default().display(),
            arguments.collect::<String>()
        )
    }
}

/// Has the kernel kill this process when its parent dies, which may have happened already.
fn die_with(parent: Pid) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != parent { Err(Errno::ESRCH.into()) } else { Ok(()) }
}

type Order = (std::process::Command, mpsc::Sender<io::Result<Child>>);

/// Spawns from one thread that lives as long as this process: to the kernel, the parent whose death counts is the
/// thread that forked, and a test's thread may end before its processes should.
fn spawn(command: std::process::Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                // Nobody waits for the reply only if the asking thread is gone; then nobody minds.
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let gone = || io::Error::other("the spawning thread is gone");
    let (reply, child) = mpsc::channel();
    spawner.send((command, reply)).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

fn append(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("open {}", path.display()))
}

fn take(path: &Path) -> Result<String> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
