//! Ctrl-C: the testkit removes the lab; this only says so.

use std::thread;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Prints a line when this process is asked to end, as removing the lab takes a moment.
pub(crate) fn announce() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("catch SIGINT and SIGTERM")?;
    thread::Builder::new()
        .name("announce".to_owned())
        .spawn(move || {
            if signals.forever().next().is_some() {
                eprintln!("\ninterrupted: removing everything that was raised");
            }
        })
        .context("start the thread that waits for SIGINT")?;
    Ok(())
}
