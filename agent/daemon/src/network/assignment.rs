//! This node's subnets where the API server holds them: claimed, or found to be claimed by nobody else (contract N2).

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ipnet::IpNet;
use podway_cluster::{AssignError, Source, SubnetClaims};
use podway_overlay::{AssignMode, AssignPolicy, Assignment, Node, Range};
use podway_reconcile::Retry;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::events::Events;
use crate::config::{AssignConfig, Config};

/// Between two attempts at most: the cluster's state may change without the own Node changing.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The subnets that this node may use. Without claims, those that stand in its Node.
pub(crate) struct Subnets {
    claims: Option<SubnetClaims>,
    attempts: JoinSet<Result<Assignment, AssignError>>,
    /// What the Node said when the attempt was started that gave `held`, or is under way.
    asked: Option<Node>,
    held: Option<Vec<IpNet>>,
    events: Option<Events>,
    trouble: Option<String>,
    again: Option<Instant>,
    retry: Retry,
}

impl Subnets {
    /// Those of the Node, whatever they are.
    pub(crate) fn as_given() -> Self {
        Self {
            claims: None,
            attempts: JoinSet::new(),
            asked: None,
            held: None,
            events: None,
            trouble: None,
            again: None,
            retry: Retry::new(Duration::from_millis(500), LONGEST_WAIT),
        }
    }

    /// Those that `source`, if it is an API server, shows to be this machine's, or that it lets this node have.
    pub(crate) fn claimed(config: &Config, source: &Source, events: Events) -> Result<Self> {
        let assign = &config.network.assign;
        if assign.mode == AssignMode::Never {
            return Ok(Self::as_given());
        }
        let policy = AssignPolicy {
            node: config.node_name.as_str().into(),
            machine: machine(&config.machine_id_file).into(),
            mode: assign.mode,
            ranges: ranges(&config.network.pod_networks, assign)?,
            namespace: assign.namespace.as_str().into(),
        };
        Ok(Self { claims: source.subnet_claims(policy), events: Some(events), ..Self::as_given() })
    }

    /// The Node with no subnets but those that this node may use. Asks for them if the Node is another than before.
    pub(super) fn of(&mut self, node: &Node) -> Node {
        if self.claims.is_none() {
            return node.clone();
        }
        if self.asked.as_ref().is_some_and(|asked| asked.uid != node.uid) {
            self.forget();
        }
        let is_news = self.asked.as_ref().is_none_or(|asked| asked.pod_cidrs != node.pod_cidrs);
        if is_news && self.held.as_ref() != Some(&node.pod_cidrs) {
            self.held = None;
            self.ask(node);
        }
        Node { pod_cidrs: self.held.clone().unwrap_or_default(), ..node.clone() }
    }

    /// The Node is gone: one of the same name may come, to which other subnets belong.
    pub(super) fn forget(&mut self) {
        // Not merely aborted: one that has ended would still be heard.
        self.attempts = JoinSet::new();
        (self.asked, self.held, self.again, self.trouble) = (None, None, None, None);
    }

    /// Whether the first answer is still awaited: nothing can be said yet of this node's subnets.
    pub(super) fn is_open(&self) -> bool {
        self.claims.is_some() && self.asked.is_some() && self.held.is_none() && self.trouble.is_none()
    }

    /// Why this node has no subnets.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Waits until something is known of this node's subnets that was not before. May be dropped and called again.
    pub(super) async fn changed(&mut self) {
        loop {
            let again = self.again;
            tokio::select! {
                Some(ended) = self.attempts.join_next() => {
                    // An attempt that was given up has nothing to say.
                    if let Ok(result) = ended {
                        return self.note(result);
                    }
                }
                () = crate::run::sleep_until(again.map(Into::into)) => {
                    self.again = None;
                    if let Some(node) = self.asked.clone() {
                        self.ask(&node);
                    }
                }
            }
        }
    }

    fn ask(&mut self, node: &Node) {
        let Some(claims) = self.claims.clone() else { return };
        self.asked = Some(node.clone());
        self.again = None;
        self.attempts = JoinSet::new();
        self.attempts.spawn_local(async move { claims.assign().await });
    }

    fn note(&mut self, result: Result<Assignment, AssignError>) {
        match result {
            Ok(assignment) => {
                self.retry.succeeded();
                self.tell(&assignment);
                self.trouble = None;
                self.held = Some(assignment.subnets);
            }
            Err(error) => {
                let (wait, text) = (self.retry.failed(), error.to_string());
                if self.trouble.as_ref() != Some(&text) {
                    warn!(again_in = ?wait, "this node has no subnets: {text}");
                    if let (Some(events), AssignError::Unassigned(why)) = (&self.events, &error) {
                        events.unassigned(why);
                    }
                }
                self.trouble = Some(text);
                self.again = Some(Instant::now() + wait);
            }
        }
    }
}

impl Subnets {
    fn tell(&self, assignment: &Assignment) {
        let Some(events) = &self.events else { return };
        if let Some(why) = &assignment.unguarded {
            warn!("a second machine with this node's name would not be noticed: {why}");
        }
        if assignment.is_new {
            let subnets: Vec<String> = assignment.subnets.iter().map(IpNet::to_string).collect();
            let note = format!("{} claimed for this node", subnets.join(", "));
            info!("{note}");
            events.assigned(&note);
        }
    }
}

/// The content of the file that tells this machine from others; empty when it cannot be read.
fn machine(path: &Path) -> String {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().to_owned(),
        Err(error) => {
            warn!(
                "machineIdFile {}: {error}; a second machine with this node's name would not be noticed",
                path.display()
            );
            String::new()
        }
    }
}

/// What subnets are taken from, the first pod network's family first.
fn ranges(pod_networks: &[IpNet], assign: &AssignConfig) -> Result<Vec<Range>> {
    let range = |network: &IpNet| {
        let (len, min, max) = match network {
            IpNet::V4(_) => {
                (assign.subnet_len, assign.subnet_min.map(Into::into), assign.subnet_max.map(Into::into))
            }
            IpNet::V6(_) => (
                assign.ipv6_subnet_len,
                assign.ipv6_subnet_min.map(Into::into),
                assign.ipv6_subnet_max.map(Into::into),
            ),
        };
        Range::new(*network, Some(len).filter(|len| *len != 0), min, max).context("network.assign")
    };
    pod_networks.iter().map(range).collect()
}
