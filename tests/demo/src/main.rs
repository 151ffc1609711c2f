//! The demo behind `cargo xtask demo`.

fn main() {}
