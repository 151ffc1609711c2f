//! The service half: events in, rows planned, both dataplanes fed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use podway_bpf::BpfDataplane;
use podway_cluster::Kind;
use podway_nftables::{Nft, NftProcess, Services, Watch};
use podway_proxy::{Frontend, ObjectName, Planner, RowDelta, Rows};
use podway_reconcile::{Contest, Recovery, Retry};
use tracing::{debug, info, warn};

use crate::run::{Half, Listed, Next, ServiceEvent};
use crate::status::{self, Board};

/// The longest wait between two attempts: kube-proxy's syncPeriod (contract S30).
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What becomes of the eBPF dataplane.
pub(crate) enum Bpf {
    /// It is used.
    On(Box<BpfDataplane>),
    /// It is not; what a run with it left pinned here goes once nftables has everything.
    Off(PathBuf),
}

/// Turns events into rows and rows into kernel state.
pub(crate) struct ServiceHalf<N = NftProcess> {
    planner: Planner,
    nftables: Services<N>,
    bpf: Bpf,
    listed: BTreeMap<Kind, Listed>,
    /// What is planned and not yet in the kernel; `None` until all of it was written once, and after a doubt.
    pending: Option<RowDelta>,
    contested: BTreeSet<Frontend>,
    retry: Retry,
    watch: Option<Watch>,
    board: Board,
    /// Whether somebody else may have changed what is ours.
    drifted: bool,
    contest: Contest,
    started: Instant,
}

impl<N: Nft> ServiceHalf<N> {
    /// A half that writes no rows before Services and EndpointSlices have been listed once (contract S32).
    pub(crate) fn new(nftables: Services<N>, bpf: Bpf) -> Self {
        Self {
            planner: Planner::default(),
            nftables,
            bpf,
            listed: [Kind::Service, Kind::EndpointSlice].map(|kind| (kind, Listed::Nothing)).into(),
            pending: None,
            contested: BTreeSet::new(),
            retry: Retry::new(Duration::from_millis(100), LONGEST_WAIT),
            watch: None,
            board: Board::new(""),
            drifted: false,
            contest: Contest::default(),
            started: Instant::now(),
        }
    }

    /// Notices by `watch` what others do to its tables.
    pub(crate) fn watched(self, watch: Watch) -> Self {
        Self { watch: Some(watch), ..self }
    }

    /// Writes down on this board how it is.
    pub(crate) fn telling(self, board: Board) -> Self {
        Self { board, ..self }
    }
}

impl<N: Nft> Half for ServiceHalf<N> {
    type Event = ServiceEvent;

    fn apply(&mut self, event: ServiceEvent) {
        match event {
            ServiceEvent::Change(event) => self.planner.apply(event),
            ServiceEvent::Listed(kind, listed) => {
                self.listed.insert(kind, listed);
                self.pending = None;
            }
        }
    }

    async fn disturbed(&mut self) -> Result<()> {
        let Some(watch) = &mut self.watch else { return std::future::pending().await };
        while !watch.next().await.services {}
        self.drifted = true;
        Ok(())
    }

    async fn reconcile(&mut self) -> Result<Next> {
        if self.listed() == Listed::Nothing {
            return Ok(Next::OnEvent);
        }
        let board = self.board.clone();
        let _busy = board.busy(status::Half::Services);
        let started = Instant::now();
        let repairing = self.drifted && self.until_repair().is_none();
        if repairing {
            self.drifted = false;
            self.nftables.invalidate();
            self.pending = None;
        }
        let change = self.planner.replan();
        if let Some(pending) = &mut self.pending {
            pending.merge(change);
        }
        let first = self.pending.is_none();
        let written = match self.write().await {
            Ok(written) => written,
            Err(failure) => return self.after(failure).await.map(Next::After),
        };
        let (services, took) = (self.planner.service_count(), format!("{:.1?}", started.elapsed()));
        match (first, written) {
            (true, 0) if repairing => {}
            (true, elements) if repairing => self.repaired(elements, &took),
            (true, 0) => info!(services, took, "Services stand as planned: nothing to change"),
            (true, elements) => info!(services, elements, took, "Services programmed"),
            (false, 0) => {}
            (false, elements) => debug!(services, elements, took, "Services changed"),
        }
        self.retry.succeeded();
        self.report_contested();
        self.board.listed(status::Half::Services, self.listed() == Listed::Fully);
        self.board.programmed(status::Half::Services, started.elapsed());
        Ok(self.until_repair().map_or(Next::OnEvent, Next::Within))
    }
}

impl<N: Nft> ServiceHalf<N> {
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

    /// How much of everything that is planned from is known.
    fn listed(&self) -> Listed {
        self.listed.values().copied().min().unwrap_or(Listed::Nothing)
    }

    async fn write_all(&mut self) -> Result<usize, Failure> {
        let rows = self.planner.rows();
        if self.listed() == Listed::Partly {
            // What is not in the lists may be in the part of them that could not be read: it stays.
            let additions = Rows::default().delta_to(&rows);
            let written = self.nftables.apply(&additions).await?;
            if let Bpf::On(bpf) = &mut self.bpf {
                bpf.apply(&additions)?;
                bpf.attach()?;
            }
            return Ok(written);
        }
        let written = self.nftables.replace(&rows).await?;
        match &mut self.bpf {
            Bpf::On(bpf) => {
                let held = Rows { frontends: bpf.observe()?, ..Rows::default() };
                // Frontends that find no room are left to nftables; the others are worth attaching for.
                let applied = bpf.apply(&held.delta_to(&rows));
                bpf.attach()?;
                applied?;
            }
            Bpf::Off(pins) => BpfDataplane::remove_all(pins)?,
        }
        Ok(written)
    }

    /// How long a repair must wait, where one is due.
    fn until_repair(&self) -> Option<Duration> {
        self.contest.hold(self.started.elapsed()).filter(|_| self.drifted)
    }

    fn repaired(&mut self, elements: usize, took: &str) {
        info!(elements, took, "what somebody else changed is as it was: Services");
        self.board.repaired(status::Half::Services, "element", elements as u64);
        if let Some(wait) = self.contest.repaired(self.started.elapsed()) {
            warn!(
                again_in = ?wait,
                "another program changes the Services' tables again and again: find out which, with `nft monitor`; \
                 podway gives way and repairs more seldom"
            );
        }
    }

    /// A failed write leaves the previous rows standing; what is wanted is kept for the next attempt (contract S31).
    async fn after(&mut self, failure: Failure) -> Result<Duration> {
        if failure.recovery == Recovery::Fatal {
            bail!(failure.message);
        }
        self.board.failed(status::Half::Services, "program", &failure.message);
        let wait = self.retry.failed();
        warn!(failure = failure.message, again_in = ?wait, "Services could not be programmed; what stood still stands");
        if failure.recovery == Recovery::Resync {
            self.pending = None;
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

#[cfg(test)]
mod tests {
    use podway_nftables::{DEFAULT_MARK, FakeNft};
    use podway_proxy::{Event, Protocol, Service, ServicePort, TrafficPolicy};

    use super::*;

    #[tokio::test]
    async fn s32_nothing_is_written_or_removed_before_both_lists_are_complete() {
        let mut half = half_with("web", FakeNft::default()).await;
        half.reconcile().await.unwrap();
        let kernel = half.nftables.nft_mut().clone();

        let mut restarted = ServiceHalf::new(adopt(kernel).await, off());
        for kind in [Kind::Service, Kind::EndpointSlice] {
            let writes = restarted.nftables.nft_mut().history.len();
            restarted.reconcile().await.unwrap();
            assert_eq!(restarted.nftables.nft_mut().history.len(), writes, "before {kind:?} is listed");
            restarted.apply(ServiceEvent::Listed(kind, Listed::Fully));
        }
        restarted.reconcile().await.unwrap();
        let mut emptied = adopt(restarted.nftables.nft_mut().clone()).await;
        assert_eq!(emptied.replace(&Rows::default()).await.unwrap(), 0, "what is not in the lists is gone");
    }

    #[tokio::test]
    async fn s32_from_lists_that_are_incomplete_rows_are_added_and_none_removed() {
        let mut half = half_with("web", FakeNft::default()).await;
        half.reconcile().await.unwrap();
        let mut restarted = ServiceHalf::new(adopt(half.nftables.nft_mut().clone()).await, off());
        restarted.apply(change("db", 2));
        for (listed, frontends) in [(Listed::Partly, 2), (Listed::Fully, 1)] {
            restarted.apply(ServiceEvent::Listed(Kind::Service, listed));
            restarted.apply(ServiceEvent::Listed(Kind::EndpointSlice, listed));
            restarted.reconcile().await.unwrap();
            let kernel = restarted.nftables.nft_mut().history.last().cloned().unwrap_or_default();
            let standing =
                kernel.iter().filter(|[table, set, ..]| table == "ip podway" && set == "no-endpoints");
            assert_eq!(standing.count(), frontends, "{listed:?}");
        }
    }

    #[tokio::test]
    async fn s32_no_table_is_made_before_there_are_rows_for_it() {
        let services = Services::new(FakeNft::default(), DEFAULT_MARK);
        let mut half = ServiceHalf::new(services, off());
        half.apply(change("web", 1));
        half.reconcile().await.unwrap();
        assert!(half.nftables.nft_mut().history.is_empty());
        half.apply(ServiceEvent::Listed(Kind::Service, Listed::Fully));
        half.apply(ServiceEvent::Listed(Kind::EndpointSlice, Listed::Fully));
        half.reconcile().await.unwrap();
        assert!(!half.nftables.nft_mut().history.is_empty());
    }

    #[tokio::test]
    async fn s31_a_refused_write_is_kept_and_carried_out_by_a_later_attempt() {
        let mut half = half_with("web", FakeNft::default()).await;
        half.reconcile().await.unwrap();
        half.apply(change("db", 2));
        half.nftables.nft_mut().failures = 1;
        half.nftables.nft_mut().blindness = 1;
        for attempt in ["refused", "kernel cannot be read"] {
            assert!(matches!(half.reconcile().await.unwrap(), Next::After(_)), "{attempt}");
        }
        assert_eq!(half.reconcile().await.unwrap(), Next::OnEvent);
        let mut kernel = adopt(half.nftables.nft_mut().clone()).await;
        assert_eq!(kernel.replace(&half.planner.rows()).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn s25_an_event_that_changes_nothing_writes_nothing() {
        let mut half = half_with("web", FakeNft::default()).await;
        half.reconcile().await.unwrap();
        let writes = half.nftables.nft_mut().history.len();
        half.apply(change("web", 1));
        half.reconcile().await.unwrap();
        assert_eq!(half.nftables.nft_mut().history.len(), writes);
    }

    async fn half_with(service: &str, kernel: FakeNft) -> ServiceHalf<FakeNft> {
        let mut half = ServiceHalf::new(adopt(kernel).await, off());
        half.apply(change(service, 1));
        half.apply(ServiceEvent::Listed(Kind::Service, Listed::Fully));
        half.apply(ServiceEvent::Listed(Kind::EndpointSlice, Listed::Fully));
        half
    }

    async fn adopt(kernel: FakeNft) -> Services<FakeNft> {
        Services::adopt(kernel, DEFAULT_MARK).await.unwrap()
    }

    fn off() -> Bpf {
        Bpf::Off("/nonexistent/podway-test".into())
    }

    fn change(name: &str, host: u8) -> ServiceEvent {
        let service = Service {
            created: 0,
            cluster_ips: vec![[10, 96, 0, host].into()],
            ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80 }],
            internal_traffic_policy: TrafficPolicy::Cluster,
        };
        ServiceEvent::Change(Event::Service(ObjectName::new("shop", name), Some(service)))
    }
}
