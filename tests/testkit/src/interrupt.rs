//! Ctrl-C and SIGTERM: every lab of this process is removed before it ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread;

use anyhow::{Context, Result, anyhow};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::site::Site;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static SITES: Mutex<Vec<Weak<Site>>> = Mutex::new(Vec::new());

/// Removes `site` when this process is interrupted.
pub(crate) fn watch(site: &Arc<Site>) -> Result<()> {
    static WATCHER: OnceLock<Result<(), String>> = OnceLock::new();
    let started = WATCHER.get_or_init(|| start().map_err(|error| format!("{error:#}")));
    started.as_ref().map_err(|error| anyhow!("{error}"))?;
    let mut sites = SITES.lock().unwrap_or_else(PoisonError::into_inner);
    sites.retain(|site| site.strong_count() > 0);
    sites.push(Arc::downgrade(site));
    Ok(())
}

/// Never returns once this process has been interrupted: what fails then fails for that reason, and must neither be
/// reported nor decide the exit status.
pub(crate) fn rest_if_interrupted() {
    while INTERRUPTED.load(Ordering::Relaxed) {
        thread::park();
    }
}

fn start() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("catch SIGINT and SIGTERM")?;
    thread::Builder::new()
        .name("interrupt".to_owned())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                INTERRUPTED.store(true, Ordering::Relaxed);
                remove_all();
                std::process::exit(128 + signal);
            }
        })
        .context("start the thread that waits for SIGINT")?;
    Ok(())
}

/// Keeps the list locked for good: a lab that is opened meanwhile waits there for the end of the process.
fn remove_all() {
    let sites = SITES.lock().unwrap_or_else(PoisonError::into_inner);
    for site in sites.iter().filter_map(Weak::upgrade) {
        site.close();
    }
    std::mem::forget(sites);
}
