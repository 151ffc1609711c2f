//! Nothing of a lab stays in the system, however it ends.

use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podway_testkit::{Lab, Process, binary, eventually};

const SOON: Duration = Duration::from_secs(10);
const NOTHING: Vec<PathBuf> = Vec::new();

#[test]
fn a_lab_that_ends_leaves_nothing() -> Result<()> {
    let lab = Lab::new("clean-end")?;
    let process = busy_pod(&lab)?;
    assert!(!leftovers("clean-end")?.is_empty());
    drop(lab);
    assert!(!process.is_running());
    assert_eq!(leftovers("clean-end")?, NOTHING);
    Ok(())
}

#[test]
fn a_lab_in_a_panic_leaves_nothing() -> Result<()> {
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::new("clean-panic").unwrap();
        let _process = busy_pod(&lab).unwrap();
        panic!("as a failing test does");
    }));
    assert!(panicked.is_err());
    assert_eq!(leftovers("clean-panic")?, NOTHING);
    Ok(())
}

#[test]
fn a_lab_interrupted_by_ctrl_c_leaves_nothing() -> Result<()> {
    let mut holder = hold("clean-interrupt")?;
    kill(Pid::from_raw(holder.id().try_into()?), Signal::SIGINT)?;
    assert_eq!(holder.wait()?.code(), Some(130));
    assert_eq!(leftovers("clean-interrupt")?, NOTHING);
    Ok(())
}

#[test]
fn a_lab_of_a_killed_process_is_swept_by_the_next_of_that_name() -> Result<()> {
    let mut holder = hold("clean-killed")?;
    let server = served_by("clean-killed")?;
    holder.kill()?;
    holder.wait()?;
    eventually(SOON, "the end of the killed process's server", || {
        if server.exists() { Err(server.display().to_string()) } else { Ok(()) }
    });
    assert!(!leftovers("clean-killed")?.is_empty(), "kill -9 cleaned up?");
    let lab = Lab::new("clean-killed")?;
    let _process = busy_pod(&lab)?;
    drop(lab);
    assert_eq!(leftovers("clean-killed")?, NOTHING);
    Ok(())
}

#[test]
fn a_lab_in_use_is_refused_by_name() -> Result<()> {
    let _lab = Lab::new("clean-in-use")?;
    let me = std::process::id();
    let expected = format!("lab clean-in-use is in use by process {me}");
    assert_eq!(Lab::new("clean-in-use").unwrap_err().to_string(), expected);
    assert_eq!(Lab::remove("clean-in-use").unwrap_err().to_string(), expected);
    Ok(())
}

#[test]
fn a_kept_lab_goes_on_until_it_is_removed() -> Result<()> {
    let lab = Lab::new("clean-kept")?;
    lab.keep();
    let process = busy_pod(&lab)?;
    drop(lab);
    assert!(process.is_running());
    Lab::remove("clean-kept")?;
    assert!(!process.is_running());
    assert_eq!(leftovers("clean-kept")?, NOTHING);
    Ok(())
}

#[test]
fn a_lab_does_not_sweep_another_whose_name_starts_like_its_own() -> Result<()> {
    let longer = Lab::new("clean-name-longer")?;
    let process = busy_pod(&longer)?;
    drop(Lab::new("clean-name")?);
    assert!(process.is_running());
    Ok(())
}

#[test]
fn a_process_outlives_the_thread_that_started_it() -> Result<()> {
    let lab = Lab::new("clean-thread")?;
    let started = std::thread::scope(|scope| scope.spawn(|| busy_pod(&lab)).join());
    let process = started.unwrap()?;
    std::thread::sleep(Duration::from_millis(100));
    assert!(process.is_running());
    Ok(())
}

#[test]
fn a_bpf_file_system_is_unmounted_with_its_lab() -> Result<()> {
    let lab = Lab::new("clean-bpffs")?;
    let path = lab.node("node-1")?.bpffs()?;
    let mounted =
        || std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(path.to_str().unwrap());
    assert!(mounted());
    drop(lab);
    assert!(!mounted());
    Ok(())
}

fn busy_pod(lab: &Lab) -> Result<Process> {
    lab.node("node-1")?.pod("web-1", ["10.244.1.2"])?.serve("web-1", 8080)
}

/// Another process that has a lab with a server in it.
fn hold(lab: &str) -> Result<Child> {
    let mut command = Command::new(binary("podway-probe")?);
    let mut child = command.args(["lab", "hold", lab]).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
    assert_eq!(line, format!("holding {lab}\n"));
    Ok(child)
}

fn served_by(lab: &str) -> Result<PathBuf> {
    let processes = std::fs::read_to_string(cgroups(lab)?.join("node-1/cgroup.procs"))?;
    Ok(Path::new("/proc").join(processes.lines().next().context("no process in the node")?))
}

/// What there is of a lab in the system.
fn leftovers(lab: &str) -> Result<Vec<PathBuf>> {
    let namespaces = std::fs::read_dir("/run/netns")?.map(|entry| Ok(entry?.path()));
    let namespaces: Vec<PathBuf> = namespaces.collect::<Result<_>>()?;
    let prefix = format!("/run/netns/pw-{lab}.");
    let own = namespaces.into_iter().filter(|path| path.to_string_lossy().starts_with(&prefix));
    let others = [cgroups(lab)?, std::env::temp_dir().join("podway-testkit").join(lab)];
    Ok(own.chain(others.into_iter().filter(|path| path.exists())).collect())
}

fn cgroups(lab: &str) -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).context("no cgroup2")?;
    Ok(Path::new(mount.split(' ').nth(4).context("no mount point")?).join("podway-testkit").join(lab))
}
