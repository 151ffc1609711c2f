//! `cargo xtask test`: all tests of the workspace in one `cargo test`, with everything they need in place.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufRead, BufReader, IsTerminal, Write},
    path::Path,
    process::{Command, ExitStatus},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    ebpf, host, kernel, reference,
    setup::{self, Need},
    step,
    workspace::Workspace,
};

/// The suites mostly wait, for packets, time-outs and the API server, so more of them run at once than the two
/// cores of a small machine; more than four, and the waits of the busiest begin to miss their deadlines.
const TEST_THREADS: &str = "--test-threads=4";

/// Suites that belong together under one name.
#[derive(Debug)]
struct Group {
    name: &'static str,
    /// Packages of which every suite belongs to it.
    packages: &'static [&'static str],
    /// Suites of other packages.
    suites: &'static [&'static str],
}

/// The pod network: what docs/contract.md numbers N1 to N23. Unit tests of all packages run along, they take seconds.
const OVERLAY: Group = Group {
    name: "overlay",
    packages: &["agent/overlay", "agent/netlink", "agent/cni"],
    suites: &[
        "overlay",
        "assignment",
        "bad_input",
        "cni",
        "etcd",
        "events",
        "faults",
        "flannel",
        "forward",
        "kube",
        "manifests",
        "plan",
        "repair",
        "restart",
        "status",
        "takeover",
    ],
};

/// Provides what the tests need, builds them, runs those that match `filter`; fails if one fails or none matches.
pub(crate) fn run(workspace: &Workspace, filter: Option<&str>) -> Result<()> {
    host::require_root("test")?;
    setup::provide(
        workspace,
        &[Need::Nftables, Need::Iproute, Need::Iptables, Need::Curl, Need::Ebpf, Need::Go],
    )?;
    kernel::require_features(workspace)?;
    reference::build_for_tests(workspace)?;
    ebpf::build(&workspace.root)?;

    // One cargo with the binaries and the tests: built apart, they would differ in features and build twice.
    let mut build = workspace.cargo();
    build.args(["build", "--workspace", "--bins", "--tests"]);
    step::run(workspace, "Building podway and its tests (about 3 min the first time)", build)?;

    let started = Instant::now();
    let (status, tally) = relay(cargo_test(workspace, filter)?)?;
    step::say(&format!("{tally}, {:.0} s", started.elapsed().as_secs_f32()));
    if !status.success() {
        bail!("cargo test: {status}; failing suites: {}", tally.failing_suites.join(", "));
    }
    match filter {
        Some(word) if tally.passed == 0 => {
            let suites: Vec<_> = suites(workspace)?.into_iter().collect();
            bail!("no test has {word:?} in its name, and the suites are {}", suites.join(", "))
        }
        _ => Ok(()),
    }
}

fn cargo_test(workspace: &Workspace, filter: Option<&str>) -> Result<Command> {
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast"]);
    cargo.args(selection(workspace, filter)?);
    cargo.args(["--", TEST_THREADS]);
    if io::stdout().is_terminal() {
        cargo.env("CARGO_TERM_COLOR", "always").arg("--color=always");
    }
    Ok(cargo)
}

/// A filter that is the name of a group or of a suite selects it as a whole, any other is part of a test's name.
fn selection(workspace: &Workspace, filter: Option<&str>) -> Result<Vec<String>> {
    let Some(word) = filter else { return Ok(Vec::new()) };
    let suite = |name: &str| ["--test".to_owned(), name.to_owned()];
    if word == OVERLAY.name {
        let chosen = OVERLAY.suites_in(workspace)?;
        let units = ["--lib".to_owned(), "--bins".to_owned()];
        return Ok(units.into_iter().chain(chosen.iter().flat_map(|name| suite(name))).collect());
    }
    Ok(if suites(workspace)?.contains(word) { suite(word).to_vec() } else { vec![word.to_owned()] })
}

/// The suites by name: the files and folders in any package's `tests`.
fn suites(workspace: &Workspace) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for group in ["agent", "ebpf", "tests"] {
        for package in fs::read_dir(workspace.root.join(group))? {
            names.extend(suites_of(&package?.path())?);
        }
    }
    Ok(names)
}

/// Those of one package; none where it has no such folder.
fn suites_of(package: &Path) -> Result<BTreeSet<String>> {
    let Ok(files) = fs::read_dir(package.join("tests")) else { return Ok(BTreeSet::new()) };
    let names = files.map(|file| Ok(suite_name(&file?.path())));
    names.filter_map(Result::transpose).collect()
}

impl Group {
    /// All suites that belong to it. Fails if one of them is not there.
    fn suites_in(&self, workspace: &Workspace) -> Result<BTreeSet<String>> {
        let all = suites(workspace)?;
        let mut names: BTreeSet<String> = self.suites.iter().map(|name| (*name).to_owned()).collect();
        for package in self.packages {
            names.extend(suites_of(&workspace.root.join(package))?);
        }
        match names.difference(&all).next() {
            Some(absent) => bail!("group {} names suite {absent}, which is not there", self.name),
            None => Ok(names),
        }
    }
}

/// As cargo names test targets: `overlay` of overlay.rs and of overlay/main.rs.
fn suite_name(path: &Path) -> Option<String> {
    let is_suite =
        path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").is_file();
    is_suite.then(|| path.file_stem())?.map(|name| name.to_string_lossy().into_owned())
}

/// Runs cargo test with its output as it comes, and counts along.
fn relay(mut cargo: Command) -> Result<(ExitStatus, Tally)> {
    let (reader, writer) = io::pipe()?;
    cargo.stdout(writer.try_clone()?).stderr(writer);
    let mut child = cargo.spawn().context("cannot run cargo")?;
    drop(cargo); // it holds the pipe's writing end: the reader would never see the end
    let mut tally = Tally::default();
    let mut stdout = io::stdout().lock();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        stdout.write_all(&line)?;
        stdout.write_all(b"\n")?;
        tally.read(&String::from_utf8_lossy(&line));
    }
    Ok((child.wait()?, tally))
}

/// What cargo test said so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
    suites: u32,
    failing_suites: Vec<String>,
    current: String,
}

impl Tally {
    fn read(&mut self, line: &str) {
        if let Some(suite) = heading(line) {
            self.current = suite;
            return;
        }
        let Some(failed) = count(line, "failed") else { return };
        if !line.contains("test result:") {
            return;
        }
        self.suites += 1;
        self.failed += failed;
        self.passed += count(line, "passed").unwrap_or(0);
        self.ignored += count(line, "ignored").unwrap_or(0);
        if failed > 0 {
            self.failing_suites.push(self.current.clone());
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { passed, failed, ignored, suites, .. } = self;
        write!(f, "{passed} tests passed, {failed} failed, {ignored} ignored, in {suites} suites")
    }
}

/// The suite of cargo's `Running tests/overlay.rs (target/...)`, `Running unittests src/lib.rs (...)` and
/// `Doc-tests podway_proxy`.
fn heading(line: &str) -> Option<String> {
    let line = without_colour(line);
    let line = line.trim();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("documentation of {name}"));
    }
    // The binary's name says more than its source's, which is src/lib.rs for every crate.
    let (_, binary) = line.strip_prefix("Running ")?.rsplit_once("/deps/")?;
    let (name, _hash) = binary.rsplit_once('-')?;
    Some(name.to_owned())
}

/// `3` for `passed` in `test result: ok. 3 passed; 0 failed; ...`.
fn count(line: &str, what: &str) -> Option<u32> {
    let (before, _) = line.split_once(&format!(" {what};"))?;
    before.rsplit(' ').next()?.parse().ok()
}

fn without_colour(line: &str) -> String {
    let mut parts = line.split('\x1b');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.read(line));
        tally
    }

    #[test]
    fn results_are_added_up_and_a_failing_suite_is_named() {
        let tally = tally(&[
            "     Running unittests src/lib.rs (target/debug/deps/podway_proxy-0a1b)",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "     Running tests/overlay.rs (target/debug/deps/overlay-0a1b)",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "   Doc-tests podway_proxy",
            "test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ]);
        assert_eq!((tally.passed, tally.failed, tally.ignored, tally.suites), (9, 1, 1, 3));
        assert_eq!(tally.failing_suites, ["overlay"]);
    }

    #[test]
    fn colours_hide_neither_headings_nor_results() {
        let tally = tally(&[
            "\x1b[1m\x1b[92m     Running\x1b[0m tests/overlay.rs (target/debug/deps/overlay-0a1b)",
            "test result: \x1b[31mFAILED\x1b[m. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
        ]);
        assert_eq!(tally.failing_suites, ["overlay"]);
    }

    #[test]
    fn suites_are_named_as_cargo_names_them() {
        assert_eq!(suite_name("tests/suites/tests/overlay.rs".as_ref()).as_deref(), Some("overlay"));
        assert_eq!(suite_name("tests/suites/tests/README.md".as_ref()), None);
    }

    #[test]
    fn the_pod_networks_group_has_its_packages_suites_and_names_none_that_is_not_there() {
        let suites = OVERLAY.suites_in(&Workspace::find().unwrap()).unwrap();
        for name in ["overlay", "laws", "vpc", "backends", "takeover"] {
            assert!(suites.contains(name), "{name}: {suites:?}");
        }
        assert!(!suites.contains("services"), "{suites:?}");
    }

    #[test]
    fn a_group_a_suite_and_a_part_of_a_name_are_told_apart() {
        let line = |filter| {
            let cargo = cargo_test(&Workspace::find().unwrap(), Some(filter)).unwrap();
            cargo.get_args().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" ")
        };
        let group = line("overlay");
        assert!(group.contains(" --lib --bins ") && group.contains(" --test overlay "), "{group}");
        assert!(group.contains(" --test takeover ") && group.contains(" --test laws "), "{group}");
        assert!(line("takeover").contains(" --test takeover -- "), "{}", line("takeover"));
        assert!(line("n6_host").contains(" n6_host -- "), "{}", line("n6_host"));
    }

    #[test]
    fn what_a_test_prints_is_no_result() {
        assert_eq!(tally(&["sent 5 packets, 3 failed; again"]), Tally::default());
    }
}
