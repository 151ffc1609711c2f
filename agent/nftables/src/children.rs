//! Whose the writes are that the kernel tells of.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Long enough for what the kernel tells of a run to be read; a process id means somebody else some time later.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The process ids of the latest runs of nft, as this process sees them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Children(Arc<Mutex<VecDeque<(u32, Instant)>>>);

impl Children {
    pub(crate) fn note(&self, id: Option<u32>) {
        let Some(id) = id else { return };
        let mut children = self.lock();
        children.push_back((id, Instant::now()));
        while children.front().is_some_and(|(_, at)| at.elapsed() > REMEMBERED) {
            children.pop_front();
        }
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        self.lock().iter().any(|(child, at)| *child == id && at.elapsed() <= REMEMBERED)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(u32, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
