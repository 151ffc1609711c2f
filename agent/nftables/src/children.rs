//! Whose the writes are that the kernel tells of.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Long enough for what the kernel tells of a run to be read; some tell it nothing, because nothing was to be changed.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Tells everybody who listens to the kernel which runs of nft are this process's own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Children(Arc<Mutex<Vec<Weak<Runs>>>>);

/// The oldest first.
type Runs = Mutex<VecDeque<Run>>;

#[derive(Debug, Clone, Copy)]
struct Run {
    /// The process id, as this process sees it. It means somebody else some time later, and it may mean somebody else
    /// in another pid namespace.
    id: u32,
    at: Instant,
}

/// The runs of which the kernel has not told yet.
#[derive(Debug, Default)]
pub(crate) struct Untold(Arc<Runs>);

impl Children {
    /// The runs from now on.
    pub(crate) fn untold(&self) -> Untold {
        let untold = Untold::default();
        lock(&self.0).push(Arc::downgrade(&untold.0));
        untold
    }

    /// Notes a run that may change something.
    pub(crate) fn started(&self, id: u32) {
        let run = Run { id, at: Instant::now() };
        self.each(|runs| {
            runs.retain(|it| it.at.elapsed() <= REMEMBERED);
            runs.push_back(run);
        });
    }

    /// Forgets a run that changed nothing.
    pub(crate) fn failed(&self, id: u32) {
        self.each(|runs| {
            let latest = runs.iter().rposition(|it| it.id == id);
            latest.map(|at| runs.remove(at));
        });
    }

    fn each(&self, mut change: impl FnMut(&mut VecDeque<Run>)) {
        lock(&self.0).retain(|listener| {
            let listener = listener.upgrade();
            listener.iter().for_each(|runs| change(&mut lock(runs)));
            listener.is_some()
        });
    }
}

impl Untold {
    /// Whether such a run was untold; now it is told.
    pub(crate) fn tell(&self, id: u32) -> bool {
        let mut runs = lock(&self.0);
        let told = runs.iter().position(|it| it.id == id && it.at.elapsed() <= REMEMBERED);
        told.map(|at| runs.remove(at)).is_some()
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_told_once_to_each_listener() {
        let children = Children::default();
        let (one, two) = (children.untold(), children.untold());
        children.started(7);
        assert!(one.tell(7) && two.tell(7));
        assert!(!one.tell(7) && !two.tell(7), "another pid namespace may have a 7 too");
    }

    #[test]
    fn a_run_that_failed_is_never_told_and_nobody_hears_of_what_was_before() {
        let children = Children::default();
        children.started(7);
        let untold = children.untold();
        assert!(!untold.tell(7));
        children.started(8);
        children.failed(8);
        assert!(!untold.tell(8));
    }
}
