//! The eBPF dataplane against this machine's kernel: real sockets in a cgroup of their own connect to Services.
//!
//! Needs root, a cgroup2 hierarchy and the eBPF programs (`cargo xtask build-ebpf` before the tests are compiled); each
//! test fails by name where one of them is missing.

#![allow(clippy::unwrap_used, reason = "what cannot be set up or read has failed the test")]

mod client;
mod fixture;
mod lifecycle;
mod rows;
mod translation;
