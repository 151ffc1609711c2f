//! podway.

fn main() {}
