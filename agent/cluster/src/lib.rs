//! The cluster state from an API server or a folder of manifests, as one stream of events.
//!
//! I/O only: what an event means is decided in the pure crates.

mod event;

pub use event::{Event, Kind, Problem};
