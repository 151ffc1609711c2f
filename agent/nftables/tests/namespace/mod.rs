//! A network namespace for a test, and the ordinary tools in it.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Runs a test in a network namespace of its own, on a thread that goes with it. Needs root.
pub(crate) fn in_namespace(test: impl Future<Output = ()>) {
    unshare(CloneFlags::CLONE_NEWNET)
        .expect("needs root to make a network namespace: run cargo xtask test as root");
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// Runs nft with arguments that are separated by single blanks.
pub(crate) fn nft(arguments: &str) -> String {
    run("nft", arguments)
}

/// Runs a program likewise, and returns what it printed.
pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .output()
        .unwrap_or_else(|_| panic!("needs {program}: run cargo xtask setup"));
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
