//! The demo behind `cargo xtask demo`: a small shop on three nodes, each a network namespace with a real podway.
//!
//! Every step shows something and checks it; the first that does not hold ends the demo. Nothing outside the lab
//! `demo` of the testkit is touched, and all of it is removed at the end, unless it is to be kept.

mod cluster;
mod interrupt;
mod keepsake;
mod node_state;
mod podway;
mod screen;
mod shop;
mod stage;
mod steps;
mod traffic;
mod words;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use std::{fs, io};

use anyhow::{Context, Error, Result, bail};
use clap::Parser;
use podway_testkit::{Lab, binary};

use crate::cluster::SourceKind;
use crate::screen::Screen;
use crate::stage::Stage;

/// The lab's name, part of the names of all its network namespaces: pw-demo.node-1 and so on.
const LAB: &str = "demo";

/// Shows podway at work: a small web shop on three nodes, from ordinary Kubernetes manifests (manifests/demo).
///
/// Nodes and pods are network namespaces, the daemons and the packets are real. Takes about 20 seconds and removes
/// everything afterwards, also on Ctrl-C. Colours are left out with NO_COLOR set and where the output is no terminal.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask demo", max_term_width = 110)]
struct Arguments {
    /// Leave everything up at the end, and say how to look around.
    #[arg(long)]
    keep: bool,
    /// Take the cluster from a real kube-apiserver with etcd instead of a folder of manifests.
    #[arg(long)]
    kube: bool,
    /// Remove what --keep left, and do nothing else.
    #[arg(long, conflicts_with_all = ["keep", "kube"])]
    remove: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = if arguments.remove { remove() } else { demo(&arguments) };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            screen::failed(&failure.error, failure.hint.as_deref());
            ExitCode::FAILURE
        }
    }
}

/// Why the demo ended early, and where to look for more.
struct Failure {
    error: Error,
    hint: Option<String>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, hint: None }
    }
}

fn remove() -> Result<(), Failure> {
    Lab::remove(LAB)?;
    println!("The demo is removed: its namespaces, processes, cgroups and files.");
    Ok(())
}

fn demo(arguments: &Arguments) -> Result<(), Failure> {
    let started = Instant::now();
    let screen = Screen::new(steps::COUNT);
    interrupt::announce()?;
    let lab = Lab::new(LAB)?;
    if arguments.keep {
        lab.keep();
    }
    let outcome = play(&lab, &screen, arguments);
    let logs = match &outcome {
        Err(_) if !arguments.keep => save_logs(&lab),
        _ => Ok(lab.logs()),
    };
    // Does not return when Ctrl-C was the reason that something failed.
    drop(lab);
    outcome.map_err(|error| Failure { error, hint: Some(where_to_look(arguments, logs)) })?;
    screen.finish(started.elapsed(), arguments.keep);
    Ok(())
}

fn play(lab: &Lab, screen: &Screen, arguments: &Arguments) -> Result<()> {
    let source = if arguments.kube { SourceKind::Kube } else { SourceKind::Directory };
    screen.title(source);
    let mut stage = Stage::raise(lab, source, screen)?;
    steps::show_all(&mut stage, screen)?;
    if arguments.keep {
        steps::cleanup::undo(&mut stage)?;
        keepsake::print(&stage)?;
    }
    Ok(())
}

/// Keeps the daemons' logs, which would go away with the lab.
fn save_logs(lab: &Lab) -> Result<PathBuf> {
    let podway = binary("podway")?;
    let target = podway.ancestors().nth(2).context("podway lies in no target folder")?;
    let folder = target.join("demo-logs");
    copy_files(&lab.logs(), &folder).with_context(|| format!("copy logs to {}", folder.display()))?;
    Ok(folder)
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

fn where_to_look(arguments: &Arguments, logs: Result<PathBuf>) -> String {
    let logs = match logs {
        Ok(folder) => format!("the daemons' logs are in {}", folder.display()),
        Err(error) => format!("the daemons' logs are lost ({error:#})"),
    };
    match arguments.keep {
        true => format!("{logs}; all stands as it is until cargo xtask demo --remove"),
        false => format!("{logs}; everything else is removed"),
    }
}

/// Fails the step with what was seen, unless `held`.
fn require(held: bool, what: impl FnOnce() -> String) -> Result<()> {
    if !held {
        bail!(what());
    }
    Ok(())
}
