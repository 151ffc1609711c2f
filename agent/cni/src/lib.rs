//! The CNI plugin of podway (contract N11): a pod's veth pair, its addresses and routes.
//!
//! A process for each call, as the [specification] 1.1 has it: parameters in the environment, the network configuration
//! on standard input, the answer on standard output. Everything is known from files: the node's subnet and MTU from
//! `subnet.env`, the addresses given away from the data directory. The daemon need not run.
//!
//! Two things outlive a call: the reservation of addresses, written before anything is made, and the veth pair, whose
//! end on the node has a name that follows from the attachment and an alias that is set last. So whatever moment a call
//! is killed at, DEL and GC find what it made.
//!
//! [specification]: https://github.com/containernetworking/cni/blob/v1.3.0/SPEC.md

mod add;
mod addresses;
mod attachment;
mod check;
mod config;
mod del;
mod error;
mod host_local;
mod inside;
mod messages;
mod netlink;
mod outcome;
mod reply;
mod request;
mod status;
mod store;
mod subnet;
mod sysctl;
mod version;

use std::io::{self, Read, Write};
use std::process::ExitCode;

use crate::error::Error;
use crate::request::{Command, Request};
use crate::version::Version;

/// Whether this process was called by a container runtime: with the specification's environment and no arguments.
pub fn is_called() -> bool {
    std::env::args_os().len() == 1 && std::env::var_os("CNI_COMMAND").is_some()
}

/// Carries out one call and answers it: JSON on standard output, exit status 0 or 1.
pub fn run() -> ExitCode {
    let (answer, exit) = answer(|name| std::env::var(name).ok(), io::stdin().lock());
    match io::stdout().lock().write_all(answer.as_bytes()) {
        Ok(()) => exit,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The answer to a call with this environment and input; empty where the specification has none.
fn answer(environment: impl Fn(&str) -> Option<String>, input: impl Read) -> (String, ExitCode) {
    let mut version = Version::LATEST;
    match carry_out(&environment, input, &mut version) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => (reply::error(version, &error), ExitCode::FAILURE),
    }
}

/// Sets `version` as soon as it is known which one the caller speaks.
fn carry_out(
    environment: &impl Fn(&str) -> Option<String>,
    mut input: impl Read,
    version: &mut Version,
) -> Result<String, Error> {
    let command = Command::from_environment(environment)?;
    let mut text = Vec::new();
    input.read_to_end(&mut text).map_err(Error::Input)?;
    if command == Command::Version {
        return reply::versions(&text);
    }
    let request = Request::read(command, environment, &text, version)?;
    match request {
        Request::Add(network, pod) => add::add(&network, &pod).map(|result| reply::result(*version, &result)),
        Request::Del(network, attachment) => del::del(&network, &attachment).map(|()| String::new()),
        Request::Check(network, pod) => check::check(&network, &pod).map(|()| String::new()),
        Request::Gc(network) => del::gc(&network).map(|()| String::new()),
        Request::Status(network) => status::status(&network).map(|()| String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call with this environment, as `CNI_COMMAND=ADD CNI_IFNAME=eth0`.
    fn call(environment: &str, input: &str) -> (serde_json::Value, bool) {
        let variables = environment.split(' ').filter_map(|pair| pair.split_once('='));
        let variables: Vec<(String, String)> = variables.map(|(k, v)| (k.into(), v.into())).collect();
        let value = |name: &str| variables.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
        let (answer, exit) = answer(value, input.as_bytes());
        (serde_json::from_str(&answer).unwrap_or_default(), exit == ExitCode::SUCCESS)
    }

    fn code(environment: &str, input: &str) -> (u64, String) {
        let (answer, success) = call(environment, input);
        assert!(!success, "{answer}");
        (answer["code"].as_u64().unwrap(), format!("{} {}", answer["msg"], answer["details"]))
    }

    const ADD: &str = "CNI_COMMAND=ADD CNI_CONTAINERID=a CNI_NETNS=/no/such CNI_IFNAME=eth0";
    const CONFIG: &str = r#"{"cniVersion":"1.1.0","name":"n","type":"podway"}"#;

    #[test]
    fn n11_version_answers_all_versions_in_the_callers() {
        for input in [r#"{"cniVersion":"0.4.0"}"#, r#"{"cniVersion":"0.4.0","name":"x"}"#] {
            let (answer, success) = call("CNI_COMMAND=VERSION", input);
            assert!(success);
            assert_eq!(answer["cniVersion"], "0.4.0");
            let all = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
            assert_eq!(answer["supportedVersions"], serde_json::json!(all));
        }
        assert_eq!(call("CNI_COMMAND=VERSION", "").0["cniVersion"], "1.1.0");
    }

    #[test]
    fn n11_wrong_environment_is_error_4_and_names_every_variable() {
        let (number, text) = code("CNI_COMMAND=ADD", CONFIG);
        assert_eq!(number, 4);
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            assert!(text.contains(name), "{text}");
        }
        let (number, text) = code("CNI_COMMAND=JUMP", CONFIG);
        assert!(number == 4 && text.contains("CNI_COMMAND") && text.contains("JUMP"), "{number} {text}");
        assert_eq!(code("", CONFIG).0, 4);
        for ifname in ["a/b", "..", "sixteen-letters-", "a:b"] {
            let (number, text) =
                code(&format!("CNI_COMMAND=DEL CNI_CONTAINERID=a CNI_IFNAME={ifname}"), CONFIG);
            assert!(number == 4 && text.contains("CNI_IFNAME"), "{number} {text}");
        }
        let (number, text) = code("CNI_COMMAND=DEL CNI_CONTAINERID=../a CNI_IFNAME=eth0", CONFIG);
        assert!(number == 4 && text.contains("CNI_CONTAINERID"), "{number} {text}");
    }

    #[test]
    fn n11_wrong_configuration_has_the_specifications_codes() {
        assert_eq!(code(ADD, "{").0, 6);
        assert_eq!(code(ADD, r#"{"cniVersion":"1.1.0","name":7}"#).0, 6);
        for version in ["9.9.9", "0.2.0", "", "1"] {
            let (number, text) = code(ADD, &format!(r#"{{"cniVersion":"{version}","name":"n"}}"#));
            assert!(number == 1 && text.contains("1.1.0"), "{number} {text}");
        }
        assert_eq!(code(ADD, r#"{"name":"n"}"#).0, 1, "no version is 0.1.0");
        assert_eq!(code(ADD, r#"{"cniVersion":"1.1.0"}"#).0, 7);
        assert_eq!(code(ADD, r#"{"cniVersion":"1.1.0","name":"../n"}"#).0, 7);
        assert_eq!(code(ADD, r#"{"cniVersion":"1.1.0","name":"n","mtu":12}"#).0, 7);
        let ipam = r#"{"cniVersion":"1.1.0","name":"n","ipam":{"type":"host-local"}}"#;
        let (number, text) = code(ADD, ipam);
        assert!(number == 2 && text.contains("ipam") && text.contains("host-local"), "{number} {text}");
    }

    #[test]
    fn n11_commands_that_a_version_lacks_are_error_1() {
        let of = |version| format!(r#"{{"cniVersion":"{version}","name":"n","type":"podway"}}"#);
        let check = ADD.replace("ADD", "CHECK");
        assert_eq!(code(&check, &of("0.3.1")).0, 1);
        assert_eq!(code("CNI_COMMAND=GC", &of("1.0.0")).0, 1);
        assert_eq!(code("CNI_COMMAND=STATUS", &of("1.0.0")).0, 1);
    }

    #[test]
    fn n11_errors_speak_the_callers_version() {
        let old = r#"{"cniVersion":"0.4.0","name":"n","mtu":12}"#;
        assert_eq!(call(ADD, old).0["cniVersion"], "0.4.0");
    }
}
