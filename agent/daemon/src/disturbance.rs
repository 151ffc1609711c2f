//! Other programs' changes in nftables, slowed down when they come again and again (contract N13).

use std::time::{Duration, Instant};

use podway_nftables::{Damage, Watch};
use podway_reconcile::Contest;
use tracing::warn;

/// How long to do without the kernel's word when it fails.
const AGAIN: Duration = Duration::from_secs(5);

/// A half's ear.
pub(crate) struct Disturbance {
    watch: Watch,
    /// What was heard and not given out yet.
    heard: Damage,
    contest: Contest,
    started: Instant,
}

impl Disturbance {
    pub(crate) fn new(watch: Watch) -> Self {
        Self { watch, heard: Damage::default(), contest: Contest::default(), started: Instant::now() }
    }

    /// Waits until somebody else did damage that `concerns` the caller, and as long as another repair must wait. May be
    /// dropped and called again at any time.
    pub(crate) async fn next(&mut self, concerns: impl Fn(&Damage) -> bool) -> Damage {
        loop {
            if !self.heard.is_empty() && concerns(&self.heard) {
                if let Some(wait) = self.contest.hold(self.started.elapsed()) {
                    tokio::time::sleep(wait).await;
                }
                if let Some(wait) = self.contest.repaired(self.started.elapsed()) {
                    warn!(
                        next_repair_in = ?wait,
                        "another program keeps changing podway's nftables or what they need: find it with `nft monitor`"
                    );
                }
                return std::mem::take(&mut self.heard);
            }
            self.heard = Damage::default();
            match self.watch.next().await {
                Ok(damage) => self.heard = damage,
                Err(error) => {
                    warn!(again_in = ?AGAIN, "{error}");
                    tokio::time::sleep(AGAIN).await;
                    self.heard = Damage::everything();
                }
            }
        }
    }
}
