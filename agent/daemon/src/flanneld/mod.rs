//! `podway flanneld`: flannel's command line and variables, and the network half alone (contract N21, X6).
//!
//! Everything becomes a [`Config`]; what flannel has and podway does not need is named in the log. Differences that
//! users should know are in docs/flannel.md.

mod args;
mod environment;
mod flags;
mod mapping;

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use podway_cluster::{KubeConfig, SourceConfig};
use podway_reconcile::Retry;
use tracing::{info, warn};

use self::args::Asked;
use self::environment::{Environment, NodeName};
use crate::config::Config;
use crate::overrides::Override;
use crate::{log, message, run};

/// What Go's flag package exits with for flags that it does not take.
const USAGE: u8 = 2;

/// Something to say once the log is open.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Note {
    /// It was given, and changes nothing here.
    Idle(String),
    /// It was given, and is probably a mistake.
    Wrong(String),
}

/// What to run.
#[derive(Debug)]
struct Start {
    config: Config,
    notes: Vec<Note>,
    /// The pod whose Node is this one, when nothing else says which it is: namespace and name.
    pod: Option<(String, String)>,
}

/// Runs flanneld's command line, the program's name left out, to the end.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let flags = match args::parse(arguments) {
        Ok(Asked::Run(flags)) => flags,
        Ok(Asked::Version) => {
            eprintln!("podway v{}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Ok(Asked::Help) => {
            eprint!("{}", args::usage("flanneld"));
            return ExitCode::SUCCESS;
        }
        Err(refused) => {
            eprint!("{refused}\n{}", args::usage("flanneld"));
            return ExitCode::from(USAGE);
        }
    };
    match start(flags, &variables()).and_then(execute) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flanneld: {}", message::of(&error));
            ExitCode::FAILURE
        }
    }
}

/// The configuration that follows from flags and variables. `PODWAY_*` variables go over both: they reach what
/// flannel has no flag for.
fn start(mut flags: args::Flags, environment: &Environment) -> Result<Start> {
    let mut notes = environment::complete(&mut flags, environment);
    notes.extend(mapping::notes(&flags));
    let mut overrides = mapping::overrides(&flags)?;
    for (name, value) in environment.iter().filter(|(name, _)| name.starts_with("PODWAY_")) {
        overrides.extend(Override::from_variable(name, value)?);
    }
    let mut pod = None;
    match environment::node_name(environment) {
        NodeName::Given(name) => {
            overrides.push(Override::of("NODE_NAME".to_owned(), "nodeName", name.into()))
        }
        NodeName::OfPod { namespace, pod: name } if flags.switch("kube-subnet-mgr") => {
            pod = Some((namespace, name))
        }
        NodeName::OfPod { .. } | NodeName::OfHost => {}
    }
    Ok(Start { config: Config::written(None, &overrides)?, notes, pod })
}

fn execute(start: Start) -> Result<()> {
    let Start { mut config, notes, pod } = start;
    config.read_net_conf()?;
    log::start(&config.log)?;
    for note in notes {
        match note {
            Note::Idle(text) => info!("{text}"),
            Note::Wrong(text) => warn!("{text}"),
        }
    }
    crate::block_on(async move {
        if let (Some((namespace, pod)), SourceConfig::Kube(api_server)) = (&pod, &config.source) {
            config.node_name = node_of_pod(api_server, namespace, pod).await?;
        }
        run::run(config).await
    })
}

/// The Node that the pod runs on; asks until the API server answers.
async fn node_of_pod(api_server: &KubeConfig, namespace: &str, pod: &str) -> Result<String> {
    let mut retry = Retry::new(Duration::from_secs(1), Duration::from_secs(10));
    loop {
        match podway_cluster::node_of_pod(api_server, namespace, pod).await {
            Ok(Some(node)) => return Ok(node),
            Ok(None) => bail!("Pod {namespace}/{pod} has no spec.nodeName; set NODE_NAME"),
            Err(error) if error.is_final() => return Err(error.into()),
            Err(error) => {
                let wait = retry.failed();
                warn!(again_in = ?wait, "this Node's name is not known yet: {error}");
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// Variables that are not UTF-8 are not flannel's.
fn variables() -> Environment {
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests;
