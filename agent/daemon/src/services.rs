//! The service half: events in, rows planned, both dataplanes fed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use podway_bpf::BpfDataplane;
use podway_cluster::Kind;
use podway_nftables::{NftProcess, Services};
use podway_proxy::{Frontend, ObjectName, Planner, RowDelta, Rows};
use podway_reconcile::{Recovery, Retry};
use tracing::{debug, info, warn};

use crate::run::{Half, ServiceEvent};

/// What becomes of the eBPF dataplane.
pub(crate) enum Bpf {
    /// It is used.
    On(Box<BpfDataplane>),
    /// It is not; what a run with it left pinned here goes once nftables has everything.
    Off(PathBuf),
}

/// Turns events into rows and rows into kernel state.
pub(crate) struct ServiceHalf {
    planner: Planner,
    nftables: Services,
    bpf: Bpf,
    waiting_for: BTreeSet<Kind>,
    /// What is planned and not yet in the kernel; `None` until all of it was written once, and after a doubt.
    pending: Option<RowDelta>,
    contested: BTreeSet<Frontend>,
    retry: Retry,
}

impl ServiceHalf {
    /// A half that writes nothing before Services and EndpointSlices have been listed once (contract S32).
    pub(crate) fn new(nftables: Services<NftProcess>, bpf: Bpf) -> Self {
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
        let first = self.pending.is_none();
        let written = match self.write().await {
            Ok(written) => written,
            Err(failure) => return self.after(failure).await.map(Some),
        };
        let (services, took) = (self.planner.service_count(), format!("{:.1?}", started.elapsed()));
        match (first, written) {
            (true, 0) => info!(services, took, "Services stand as planned: nothing to change"),
            (true, elements) => info!(services, elements, took, "Services programmed"),
            (false, 0) => {}
            (false, elements) => debug!(services, elements, took, "Services changed"),
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
                if let Bpf::On(bpf) = &mut self.bpf {
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
        match &mut self.bpf {
            Bpf::On(bpf) => {
                let held = Rows { frontends: bpf.observe()?, ..Rows::default() };
                bpf.apply(&held.delta_to(&rows))?;
                bpf.attach()?;
            }
            Bpf::Off(pins) => BpfDataplane::remove_all(pins)?,
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
        Self { recovery: error.recovery(), message: error.to_string() }
    }
}
