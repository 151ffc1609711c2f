//! flannel's command line: its flags, in the syntax of Go's flag package.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::flags::{FLAGS, Flag, Kind, find};

/// What was asked for on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To run with these flags.
    Run(Flags),
    /// To print the version.
    Version,
    /// To print the flags.
    Help,
}

/// Flags that were given, whether on the command line or by variables.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Flags {
    given: BTreeMap<&'static str, Given>,
    /// The first argument that is no flag: it and what follows has no effect.
    pub stray: Option<String>,
}

/// One flag as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    /// Where, for messages: `--iface`, or `FLANNELD_IFACE`.
    origin: String,
    /// The texts, each fit for the flag; all but the last count only for flags that may be repeated.
    texts: Vec<String>,
}

impl Flags {
    /// Takes one value, unless it is not fit for the flag: then says why.
    pub(crate) fn give(&mut self, flag: &'static Flag, origin: &str, text: &str) -> Result<(), String> {
        flag.kind.check(text)?;
        let fresh = Given { origin: origin.to_owned(), texts: Vec::new() };
        self.given.entry(flag.name).or_insert(fresh).texts.push(text.to_owned());
        Ok(())
    }

    /// Where the flag was given, if it was.
    pub(crate) fn origin(&self, name: &str) -> Option<&str> {
        self.given.get(name).map(|given| given.origin.as_str())
    }

    /// The flag's last text, or flannel's default.
    pub(crate) fn text(&self, name: &str) -> &str {
        let default = find(name).map_or("", |flag| flag.default);
        self.given.get(name).and_then(|given| given.texts.last()).map_or(default, String::as_str)
    }

    /// Every text of a flag that may be repeated, in their order.
    pub(crate) fn texts(&self, name: &str) -> &[String] {
        self.given.get(name).map_or(&[], |given| &given.texts)
    }

    /// Whether a switch is on.
    pub(crate) fn switch(&self, name: &str) -> bool {
        truth(self.text(name)).unwrap_or(false)
    }

    /// A number.
    pub(crate) fn number(&self, name: &str) -> i64 {
        number(self.text(name)).unwrap_or(0)
    }
}

/// Reads arguments, the program's name left out.
///
/// `-iface=eth0`, `--iface=eth0`, `--iface eth0`; a switch takes its value after `=` only: `--ip-masq=false`. The first
/// argument that does not begin with a dash ends the flags, as does `--`. An error is what flannel would print before
/// its usage (Go, src/flag/flag.go).
pub(crate) fn parse(arguments: &[String]) -> Result<Asked, String> {
    let mut flags = Flags::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let Some(dashed) = argument.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
            flags.stray = Some(argument.clone());
            break;
        };
        if dashed == "-" {
            flags.stray = arguments.next().cloned();
            break;
        }
        let (name, value) = split(argument, dashed)?;
        let Some(flag) = find(name) else {
            return match name {
                "help" | "h" => Ok(Asked::Help),
                name => Err(format!("flag provided but not defined: -{name}")),
            };
        };
        let text = match (value, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Switch) => "true",
            (None, _) => arguments.next().ok_or_else(|| format!("flag needs an argument: -{name}"))?,
        };
        flags
            .give(flag, &format!("--{name}"), text)
            .map_err(|why| format!("invalid value {text:?} for flag -{name}: {why}"))?;
    }
    if flags.switch("version") { Ok(Asked::Version) } else { Ok(Asked::Run(flags)) }
}

/// Name and value of `-name`, `--name` or either with `=value`.
fn split<'a>(argument: &str, dashed: &'a str) -> Result<(&'a str, Option<&'a str>), String> {
    let flag = dashed.strip_prefix('-').unwrap_or(dashed);
    if flag.starts_with(['-', '=']) {
        return Err(format!("bad flag syntax: {argument}"));
    }
    Ok(flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value))))
}

impl Kind {
    fn check(self, text: &str) -> Result<(), String> {
        match self {
            Self::Text | Self::Several => Ok(()),
            Self::Switch => truth(text).map(drop).ok_or_else(|| "must be true or false".to_owned()),
            Self::Number => number(text).map(drop).ok_or_else(|| "must be a whole number".to_owned()),
        }
    }
}

/// What Go's strconv.ParseBool takes.
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// What Go's strconv.ParseInt takes with base 0, but for underscores.
fn number(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, &lower[..]),
    };
    let is_unsigned = digits.starts_with(|first: char| first.is_ascii_alphanumeric());
    let value = i64::from_str_radix(digits, base).ok().filter(|_| is_unsigned)?;
    Some(sign * value)
}

/// The flags as `--help` prints them.
pub(crate) fn usage(program: &str) -> String {
    let mut text = format!("Usage: {program} [OPTION]...\n");
    for flag in FLAGS {
        let value = match flag.kind {
            Kind::Switch => "",
            Kind::Number => " int",
            Kind::Text => " string",
            Kind::Several => " value",
        };
        let default = match (flag.kind, flag.default) {
            (_, "" | "false" | "0") => String::new(),
            (Kind::Text, default) => format!(" (default {default:?})"),
            (_, default) => format!(" (default {default})"),
        };
        let _ = writeln!(text, "  -{}{value}\n    \t{}{default}", flag.name, flag.help);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n21_flags_are_written_as_go_takes_them() {
        for line in ["-iface=eth0", "--iface=eth0", "-iface eth0", "--iface eth0"] {
            assert_eq!(run(line).texts("iface"), ["eth0"], "{line}");
        }
        assert_eq!(run("--etcd-prefix=a=b").text("etcd-prefix"), "a=b");
        assert_eq!(run("--public-ip=").text("public-ip"), "");
    }

    #[test]
    fn n21_a_switch_takes_its_value_after_an_equals_sign_only() {
        assert!(run("--ip-masq").switch("ip-masq"));
        for off in ["false", "0", "F"] {
            assert!(!run(&format!("--ip-masq={off}")).switch("ip-masq"));
        }
        let flags = run("--ip-masq false --iface=eth0");
        assert!(flags.switch("ip-masq"));
        assert_eq!((flags.stray.as_deref(), flags.texts("iface").len()), (Some("false"), 0));
    }

    #[test]
    fn n21_repeated_flags_count_in_their_order_and_others_by_the_last_one() {
        let flags =
            run("--iface=eth1 --iface-regex=^en --iface=192.0.2.7 --healthz-port=1 --healthz-port=0x10");
        assert_eq!(flags.texts("iface"), ["eth1", "192.0.2.7"]);
        assert_eq!(flags.texts("iface-regex"), ["^en"]);
        assert_eq!(flags.number("healthz-port"), 16);
    }

    #[test]
    fn n21_what_is_not_given_has_flannels_default() {
        let flags = run("");
        for (name, default) in [
            ("etcd-endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379"),
            ("etcd-prefix", "/coreos.com/network"),
            ("subnet-file", "/run/flannel/subnet.env"),
            ("kube-annotation-prefix", "flannel.alpha.coreos.com"),
            ("net-config-path", "/etc/kube-flannel/net-conf.json"),
            ("healthz-ip", "0.0.0.0"),
            ("public-ip", ""),
        ] {
            assert_eq!(flags.text(name), default, "{name}");
        }
        assert!(flags.switch("iptables-forward-rules") && flags.switch("set-node-network-unavailable"));
        assert!(!flags.switch("ip-masq") && !flags.switch("kube-subnet-mgr"));
        assert_eq!((flags.number("subnet-lease-renew-margin"), flags.number("iptables-resync")), (60, 5));
    }

    #[test]
    fn n21_what_go_refuses_is_refused_by_name() {
        for (line, said) in [
            ("--ip-mask", "flag provided but not defined: -ip-mask"),
            ("--iface", "flag needs an argument: -iface"),
            ("---iface", "bad flag syntax: ---iface"),
            ("--=x", "bad flag syntax: --=x"),
            ("--ip-masq=maybe", "invalid value \"maybe\" for flag -ip-masq: must be true or false"),
            ("--healthz-port=http", "invalid value \"http\" for flag -healthz-port: must be a whole number"),
        ] {
            assert_eq!(parse(&words(line)).unwrap_err(), said, "{line}");
        }
    }

    #[test]
    fn n21_two_dashes_and_words_end_the_flags() {
        for line in ["-- --iface=eth0", "- --iface=eth0", "eth0 --iface=eth0"] {
            let flags = run(line);
            assert!(flags.texts("iface").is_empty() && flags.stray.is_some(), "{line}: {flags:?}");
        }
        assert_eq!(run("--ip-masq --").stray, None);
    }

    #[test]
    fn n21_version_and_help_are_asked_for() {
        assert_eq!(parse(&words("--kube-subnet-mgr --version")), Ok(Asked::Version));
        for line in ["-h", "--help"] {
            assert_eq!(parse(&words(line)), Ok(Asked::Help), "{line}");
        }
    }

    #[test]
    fn n21_numbers_are_gos() {
        for (text, value) in [
            ("60", Some(60)),
            ("-1", Some(-1)),
            ("0x1F", Some(31)),
            ("010", Some(8)),
            ("0b11", Some(3)),
            ("0", Some(0)),
        ] {
            assert_eq!(number(text), value, "{text}");
        }
        for text in ["", "-", "0x", "+-1", "1.5", "9x", "08"] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn n21_the_usage_names_every_flag_with_its_default() {
        let usage = usage("flanneld");
        assert!(usage.starts_with("Usage: flanneld [OPTION]...\n"));
        for flag in FLAGS {
            assert!(usage.contains(&format!("\n  -{}", flag.name)), "{}", flag.name);
        }
        assert!(usage.contains("(default \"/coreos.com/network\")") && usage.contains("(default 60)"));
    }

    fn run(line: &str) -> Flags {
        match parse(&words(line)) {
            Ok(Asked::Run(flags)) => flags,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }
}
