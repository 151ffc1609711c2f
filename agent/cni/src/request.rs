//! A call: command, environment and configuration.

use std::path::PathBuf;

use crate::attachment::{Attachment, Pod};
use crate::config::{Network, Spoken, is_identifier};
use crate::error::Error;
use crate::version::Version;

/// `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// A command with what it needs.
#[derive(Debug)]
pub(crate) enum Request {
    Add(Network, Pod),
    Del(Network, Attachment),
    Check(Network, Pod),
    Gc(Network),
    Status(Network),
}

/// The longest name of a network device.
const DEVICE_NAME: usize = 15;

impl Command {
    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    pub(crate) fn from_environment(environment: &impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let name = environment("CNI_COMMAND").unwrap_or_default();
        let found = Self::ALL.into_iter().find(|command| command.as_str() == name);
        found.ok_or_else(|| Error::Environment(format!("CNI_COMMAND {name:?} is not a command")))
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_3_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }
}

impl Request {
    /// Reads a call other than VERSION; `version` is set before anything that depends on it can go wrong.
    pub(crate) fn read(
        command: Command,
        environment: &impl Fn(&str) -> Option<String>,
        text: &[u8],
        version: &mut Version,
    ) -> Result<Self, Error> {
        let spoken = Spoken::read(text)?.version()?;
        *version = spoken;
        if spoken < command.since() {
            let (command, since) = (command.as_str(), command.since());
            return Err(Error::CommandTooNew { command, version: spoken, since });
        }
        let requested = environment("CNI_ARGS").as_deref().map(requested_addresses).unwrap_or_default();
        let network = Network::read(text, requested)?;
        Ok(match command {
            Command::Add => Self::Add(network, pod(environment)?),
            Command::Check => Self::Check(network, pod(environment)?),
            Command::Del => Self::Del(network, attachment(environment)?),
            Command::Gc => Self::Gc(network),
            Command::Status | Command::Version => Self::Status(network),
        })
    }
}

fn attachment(environment: &impl Fn(&str) -> Option<String>) -> Result<Attachment, Error> {
    let (container, ifname) = (value(environment, "CNI_CONTAINERID"), value(environment, "CNI_IFNAME"));
    let mut wrong = Vec::new();
    if !is_identifier(&container) {
        wrong
            .push(format!("CNI_CONTAINERID {container:?} is not letters, digits, and . _ - after the first"));
    }
    if !is_device_name(&ifname) {
        wrong.push(format!("CNI_IFNAME {ifname:?} is not the name of a network device"));
    }
    if wrong.is_empty() {
        Ok(Attachment { container, ifname })
    } else {
        Err(Error::Environment(wrong.join("; ")))
    }
}

fn pod(environment: &impl Fn(&str) -> Option<String>) -> Result<Pod, Error> {
    let attachment = attachment(environment);
    let netns = value(environment, "CNI_NETNS");
    if !netns.is_empty() {
        return Ok(Pod { attachment: attachment?, netns: PathBuf::from(netns) });
    }
    let missing = "CNI_NETNS is missing";
    match attachment {
        Err(Error::Environment(wrong)) => Err(Error::Environment(format!("{wrong}; {missing}"))),
        _ => Err(Error::Environment(missing.to_owned())),
    }
}

fn value(environment: &impl Fn(&str) -> Option<String>, name: &str) -> String {
    environment(name).unwrap_or_default()
}

/// `dev_valid_name` in the kernel's net/core/dev.c.
fn is_device_name(name: &str) -> bool {
    let fits = |c: char| c != '/' && c != ':' && !c.is_whitespace() && !c.is_control();
    (1..=DEVICE_NAME).contains(&name.len()) && name != "." && name != ".." && name.chars().all(fits)
}

/// `IP=` in `CNI_ARGS`, as in `IgnoreUnknown=1;IP=10.77.1.5`: what host-local takes, one or more, with commas.
fn requested_addresses(args: &str) -> Vec<String> {
    let values = args.split(';').filter_map(|pair| pair.strip_prefix("IP="));
    values.flat_map(|list| list.split(',')).filter(|ip| !ip.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n11_cni_args_of_kubernetes_ask_for_no_address() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=IP=7";
        assert_eq!(requested_addresses(args), Vec::<String>::new());
        assert_eq!(requested_addresses("IgnoreUnknown=1;IP=10.0.0.5,fd::5"), ["10.0.0.5", "fd::5"]);
    }
}
