//! `podway plan` as an operator's script sees it: exit codes, what goes to standard output and what does not.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

use std::process::{Command, Output};

#[test]
fn n23_a_plan_is_printed_with_exit_code_0() {
    let output = plan("--vpc 10.0.0.0/8 --nodes 1000 --reserve 10.0.0.0/16");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("IPv4, in 10.0.0.0/8\n\n  Pod network       10.8.0.0/13"), "{text}");
    assert_eq!(output.stderr, b"");
}

#[test]
fn n23_what_does_not_fit_is_exit_code_1_with_what_would_fit() {
    let output = plan("--vpc 10.0.0.0/16 --nodes 1000");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "podway: 10.0.0.0/16 does not hold 1000 nodes with 110 pods each and 10000 Services: that takes a /15 for pods and \
         a /18 for Services, and the largest part that is not reserved is 10.0.0.0/16. What would fit: 255 nodes with 110 \
         pods each and 10000 Services; or 1000 nodes with 29 pods each and 10000 Services\n"
    );
}

#[test]
fn n23_a_file_is_printed_alone_and_notes_go_to_standard_error() {
    let output = plan("--vpc 10.0.0.0/8 --nodes 5000 -o net-conf");
    let conf: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(conf["Network"], "10.0.0.0/10");
    assert_eq!(conf["SubnetLen"], 25);
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .starts_with("podway: note: nothing in 10.0.0.0/8 is reserved")
    );
}

#[test]
fn n23_a_wrong_flag_is_named() {
    for (flags, named) in [("--vpc 10.0.0.300/8 --nodes 5", "10.0.0.300/8"), ("--vpc 10.0.0.0/8", "--nodes")]
    {
        let output = plan(flags);
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(named), "{text}");
    }
}

fn plan(flags: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_podway")).arg("plan").args(flags.split_whitespace()).output().unwrap()
}
