//! The service half: events in, rows planned, both dataplanes fed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use podway_cluster::Kind;
use podway_nftables::{NftProcess, Recovery, Services};
use podway_proxy::{Frontend, ObjectName, Planner, RowDelta, Rows};
use podway_reconcile::Retry;
use tracing::{info, warn};

use crate::run::{Half, ServiceEvent};

/// Turns events into rows and rows into kernel state.
pub(crate) struct ServiceHalf {
    planner: Planner,
    nftables: Services,
    bpf: Option<podway_bpf::BpfDataplane>,
    waiting_for: BTreeSet<Kind>,
    /// What is planned and not yet in the kernel; `None` until all of it was written once, and after a doubt.
    pending: Option<RowDelta>,
    contested: BTreeSet<Frontend>,
    retry: Retry,
}

impl ServiceHalf {
    /// A half that writes nothing before Services and EndpointSlices have been listed once (contract S32).
    pub(crate) fn new(nftables: Services<NftProcess>, bpf: Option<podway_bpf::BpfDataplane>) -> Self {
        Self {
            planner: Planner::default(),
            nftables,
            bpf,
            waiting_for: BTreeSet::from([Kind::Service, Kind::EndpointSlice]),
            pending: None,
            contested: BTreeSet::new(),
            retry: Retry::new(Duration::from_millis(100), Duration::from_secs(30)),
        }
    }
}

impl Half for ServiceHalf {
    type Event = ServiceEvent;

    fn apply(&mut self, event: ServiceEvent) {
        match event {
            ServiceEvent::Change(event) => self.planner.apply(event),
            ServiceEvent::Synced(kind) => drop(self.waiting_for.remove(&kind)),
        }
    }

    async fn reconcile(&mut self) -> Result<Option<Duration>> {
        if !self.waiting_for.is_empty() {
            return Ok(None);
        }
        let started = Instant::now();
        let change = self.planner.replan();
        if let Some(pending) = &mut self.pending {
            pending.merge(change);
        }
        match self.write().await {
            Ok(0) => {}
            Ok(written) => {
                let took = format!("{:.1?}", started.elapsed());
                info!(
                    elements = written,
                    services = self.planner.service_count(),
                    took,
                    "Services programmed"
                );
            }
            Err(failure) => return self.after(failure).await.map(Some),
        }
        self.retry.succeeded();
        self.report_contested();
        Ok(None)
    }
}

impl ServiceHalf {
    /// Writes what is pending, or everything; returns the number of elements and frontends written.
    async fn write(&mut self) -> Result<usize, Failure> {
        let written = match &self.pending {
            Some(pending) if pending.is_empty() => return Ok(0),
            Some(pending) => {
                let written = self.nftables.apply(pending).await?;
                if let Some(bpf) = &mut self.bpf {
                    bpf.apply(pending)?;
                }
                written
            }
            None => self.write_all().await?,
        };
        self.pending = Some(RowDelta::default());
        Ok(written)
    }

    async fn write_all(&mut self) -> Result<usize, Failure> {
        let rows = self.planner.rows();
        let written = self.nftables.replace(&rows).await?;
        if let Some(bpf) = &mut self.bpf {
            let held = Rows { frontends: bpf.observe()?, ..Rows::default() };
            bpf.apply(&held.delta_to(&rows))?;
            bpf.attach()?;
        }
        Ok(written)
    }

    /// A failed write leaves the previous rows standing; what is wanted is kept for the next attempt (contract S31).
    async fn after(&mut self, failure: Failure) -> Result<Duration> {
        if failure.recovery == Recovery::Fatal {
            bail!(failure.message);
        }
        let wait = self.retry.failed();
        warn!(failure = failure.message, again_in = ?wait, "Services could not be programmed; what stood still stands");
        if failure.recovery == Recovery::Resync {
            self.pending = None;
            if let Err(error) = self.nftables.observe().await {
                warn!(%error, "the nftables tables could not be read");
            }
        }
        Ok(wait)
    }

    fn report_contested(&mut self) {
        let contested = self.planner.contested();
        for (frontend, claimants) in &contested {
            if !self.contested.contains(frontend) {
                warn!(frontend = ?frontend, has_it = %claimants[0], without = %names(&claimants[1..]), "several Services claim one address and port; the oldest has it");
            }
        }
        self.contested = contested.into_keys().collect();
    }
}

fn names(names: &[ObjectName]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

struct Failure {
    message: String,
    recovery: Recovery,
}

impl From<podway_nftables::Error> for Failure {
    fn from(error: podway_nftables::Error) -> Self {
        Self { recovery: error.recovery(), message: error.to_string() }
    }
}

impl From<podway_bpf::Error> for Failure {
    fn from(error: podway_bpf::Error) -> Self {
        Self { recovery: Recovery::Retry, message: error.to_string() }
    }
}
