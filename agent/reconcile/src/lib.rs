//! Claims on keys, differences between tables, when to try again, and when to give way.
//!
//! Pure: no I/O, no clock, no randomness, no logging; time is an argument. Everything here is generic over the
//! rows, so that both dataplanes and the overlay reconcile by the same few rules.

mod claims;
mod contest;
mod delta;
mod recovery;
mod retry;

pub use claims::Claims;
pub use contest::Contest;
pub use delta::{Delta, diff};
pub use recovery::Recovery;
pub use retry::Retry;
