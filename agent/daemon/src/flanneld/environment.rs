//! The variables that flannel reads: one for each flag, and a few of their own.

use std::collections::BTreeMap;

use super::Note;
use super::args::Flags;
use super::flags::{FLAGS, Flag};

/// The environment, by name.
pub(crate) type Environment = BTreeMap<String, String>;

/// What the variables of flags begin with today, and in files that older packages of flannel came with.
const PREFIXES: [&str; 2] = ["FLANNELD_", "FLANNEL_"];

/// Names in the oldest of those files, and the flags that they meant.
const OLDEST: [(&str, &str); 2] = [("FLANNEL_ETCD", "etcd-endpoints"), ("FLANNEL_ETCD_KEY", "etcd-prefix")];

/// Variables of flannel that have no effect here, and why.
const IDLE: [(&str, &str); 2] = [
    ("EVENT_QUEUE_DEPTH", "no queue of events is bounded"),
    (
        "CONT_WHEN_CACHE_NOT_READY",
        "podway waits for the Nodes as long as it takes, and leaves the kernel as it is",
    ),
];

/// What says which Node this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeName {
    /// NODE_NAME, or PODWAY_NODE_NAME.
    Given(String),
    /// The spec.nodeName of the pod POD_NAMESPACE/POD_NAME that this process runs in.
    OfPod {
        /// POD_NAMESPACE.
        namespace: String,
        /// POD_NAME.
        pod: String,
    },
    /// Nothing: the host's name.
    OfHost,
}

/// Gives each flag that the command line has not given the value of its variable, if there is one; an empty variable
/// counts as none. What is unknown, unfit or without effect is named.
pub(crate) fn complete(flags: &mut Flags, environment: &Environment) -> Vec<Note> {
    let mut notes = Vec::new();
    for flag in FLAGS.iter().filter(|flag| flag.name != "version") {
        if flags.origin(flag.name).is_some() {
            continue;
        }
        let Some((variable, text)) = variables(flag).find_map(|name| set(environment, name)) else {
            continue;
        };
        if let Err(why) = flags.give(flag, &variable, text) {
            notes.push(Note::Wrong(format!("{variable}={text}: {why}; the default is used")));
        }
    }
    notes.extend(
        unknown(environment).map(|name| Note::Wrong(format!("{name}: flannel has no such variable"))),
    );
    notes.extend(
        IDLE.iter()
            .filter(|(name, _)| {
                set(environment, (*name).to_owned()).is_some_and(|(_, value)| value != "false")
            })
            .map(|(name, why)| Note::Idle(format!("{name} has no effect: {why}"))),
    );
    notes
}

/// Which Node this is, as flannel finds out (flannel, pkg/subnet/kube/kube.go).
pub(crate) fn node_name(environment: &Environment) -> NodeName {
    let set = |name: &str| set(environment, name.to_owned()).map(|(_, value)| value.to_owned());
    if let Some(name) = set("PODWAY_NODE_NAME").or_else(|| set("NODE_NAME")) {
        return NodeName::Given(name);
    }
    match (set("POD_NAMESPACE"), set("POD_NAME")) {
        (Some(namespace), Some(pod)) => NodeName::OfPod { namespace, pod },
        _ => NodeName::OfHost,
    }
}

/// The names of a flag's variables, the one that counts first.
fn variables(flag: &Flag) -> impl Iterator<Item = String> {
    let name = flag.name.to_uppercase().replace('-', "_");
    let oldest = OLDEST.iter().filter(|(_, meant)| *meant == flag.name).map(|(name, _)| (*name).to_owned());
    PREFIXES.map(|prefix| format!("{prefix}{name}")).into_iter().chain(oldest)
}

/// Of the older prefix other programs have variables too: subnet.env's own, and those of a Service named flannel.
fn unknown(environment: &Environment) -> impl Iterator<Item = &String> {
    let known = |name: &str| FLAGS.iter().any(|flag| variables(flag).any(|variable| variable == name));
    environment.keys().filter(move |name| name.starts_with(PREFIXES[0]) && !known(name))
}

fn set(environment: &Environment, name: String) -> Option<(String, &str)> {
    let value = environment.get(&name).filter(|value| !value.is_empty())?;
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flanneld::args::{self, Asked};

    #[test]
    fn n21_every_flag_has_its_variable() {
        for flag in FLAGS.iter().filter(|flag| flag.name != "version") {
            let name = format!("FLANNELD_{}", flag.name.to_uppercase().replace('-', "_"));
            let value = if flag.default == "true" { "false" } else { "1" };
            let (flags, notes) = completed("", &[(&name, value)]);
            assert_eq!((flags.text(flag.name), flags.origin(flag.name)), (value, Some(name.as_str())));
            assert_eq!(notes, []);
        }
    }

    #[test]
    fn n21_a_flag_on_the_command_line_wins_over_its_variable_and_an_empty_variable_is_none() {
        let (flags, _) =
            completed("--iface=eth0", &[("FLANNELD_IFACE", "eth1"), ("FLANNELD_ETCD_PREFIX", "")]);
        assert_eq!(flags.texts("iface"), ["eth0"]);
        assert_eq!(flags.text("etcd-prefix"), "/coreos.com/network");
    }

    #[test]
    fn n21_older_names_are_understood_and_todays_wins() {
        let (flags, notes) = completed(
            "",
            &[("FLANNEL_ETCD", "http://192.0.2.1:4001"), ("FLANNEL_ETCD_KEY", "/atomic.io/network")],
        );
        assert_eq!(flags.text("etcd-endpoints"), "http://192.0.2.1:4001");
        assert_eq!(flags.text("etcd-prefix"), "/atomic.io/network");
        assert_eq!(notes, []);
        let both = [
            ("FLANNEL_ETCD_PREFIX", "/old"),
            ("FLANNELD_ETCD_PREFIX", "/new"),
            ("FLANNEL_ETCD_KEY", "/oldest"),
        ];
        assert_eq!(completed("", &both).0.text("etcd-prefix"), "/new");
        assert_eq!(completed("", &both[..1]).0.text("etcd-prefix"), "/old");
    }

    #[test]
    fn n21_a_bad_variable_is_named_and_the_default_stays() {
        let (flags, notes) =
            completed("", &[("FLANNELD_HEALTHZ_PORT", "http"), ("FLANNELD_IP_MASQ", "maybe")]);
        assert_eq!(flags.number("healthz-port"), 0);
        assert!(!flags.switch("ip-masq"));
        let wrong = |text: &str| Note::Wrong(text.to_owned());
        assert_eq!(
            notes,
            [
                wrong("FLANNELD_HEALTHZ_PORT=http: must be a whole number; the default is used"),
                wrong("FLANNELD_IP_MASQ=maybe: must be true or false; the default is used"),
            ]
        );
    }

    #[test]
    fn n21_an_unknown_variable_is_named_but_not_those_of_subnet_env() {
        let strangers =
            [("FLANNELD_IP_MASK", "true"), ("FLANNEL_MTU", "1450"), ("FLANNEL_SERVICE_HOST", "10.96.0.9")];
        let (_, notes) = completed("", &strangers);
        assert_eq!(notes, [Note::Wrong("FLANNELD_IP_MASK: flannel has no such variable".to_owned())]);
    }

    #[test]
    fn n21_variables_without_effect_are_named() {
        let (_, notes) = completed("", &[("EVENT_QUEUE_DEPTH", "50"), ("CONT_WHEN_CACHE_NOT_READY", "true")]);
        let named = |name: &str| {
            notes.iter().filter(|note| matches!(note, Note::Idle(text) if text.contains(name))).count()
        };
        assert_eq!((named("EVENT_QUEUE_DEPTH"), named("CONT_WHEN_CACHE_NOT_READY"), notes.len()), (1, 1, 2));
        assert_eq!(
            completed("", &[("CONT_WHEN_CACHE_NOT_READY", "false")]).1,
            [],
            "as flannel's manifest has it"
        );
    }

    #[test]
    fn n21_the_node_is_named_by_node_name_or_by_its_pod() {
        let of = |variables: &[(&str, &str)]| node_name(&environment(variables));
        let pod = [("POD_NAME", "kube-flannel-ds-x"), ("POD_NAMESPACE", "kube-flannel")];
        assert_eq!(
            of(&pod),
            NodeName::OfPod { namespace: "kube-flannel".to_owned(), pod: "kube-flannel-ds-x".to_owned() }
        );
        assert_eq!(of(&[pod[0], pod[1], ("NODE_NAME", "node-1")]), NodeName::Given("node-1".to_owned()));
        assert_eq!(of(&pod[..1]), NodeName::OfHost);
        assert_eq!(of(&[("NODE_NAME", "")]), NodeName::OfHost);
    }

    fn completed(line: &str, variables: &[(&str, &str)]) -> (Flags, Vec<Note>) {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let Ok(Asked::Run(mut flags)) = args::parse(&words) else { panic!("{line}") };
        let notes = complete(&mut flags, &environment(variables));
        (flags, notes)
    }

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }
}
