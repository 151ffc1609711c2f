//! What inotify says of the folder, boiled down to hints for the next look.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchMask};
use tokio::time;

use super::folder::{Hint, is_manifest};

/// Editors and `kubectl -o yaml > file` write in several steps: after the first sign of a change, the files are
/// read when it has been quiet for this long.
const QUIET: Duration = Duration::from_millis(50);

/// But no later than this, however much goes on.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whoever opens a file for writing and then neither writes nor closes it for this long has what it wanted in it.
const ABANDONED: Duration = Duration::from_secs(2);

/// An inotify watch on the folder, or on the folder of the one file.
pub(crate) struct Watch {
    events: EventStream<Vec<u8>>,
    folder: (u64, u64),
    /// Files that have been written to and not closed, and when they were written last.
    writing: BTreeMap<OsString, Instant>,
    hint: Hint,
}

impl Watch {
    /// Starts to watch; what changed before is not told.
    ///
    /// # Errors
    /// The folder is not there, or the kernel has no watch left.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let folder = watched_folder(path)?;
        let inotify = Inotify::init()?;
        let mask = WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::ATTRIB
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(&folder, mask)?;
        let folder = identity(&folder)?;
        let events = inotify.into_event_stream(vec![0; 4096])?;
        Ok(Self { events, folder, writing: BTreeMap::new(), hint: Hint::default() })
    }

    /// Whether the watch is still on what `path` names: not after the folder was removed and made again, or a link
    /// to it was turned.
    pub(crate) fn is_on(&self, path: &Path) -> bool {
        watched_folder(path).and_then(|folder| identity(&folder)).is_ok_and(|folder| folder == self.folder)
    }

    /// Waits until something has changed and the folder is quiet again.
    ///
    /// # Errors
    /// The watch has ended.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        while !self.next().await? {}
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match time::timeout(QUIET, self.next()).await {
                Ok(event) => event?,
                Err(_) => break,
            };
        }
        Ok(())
    }

    /// What has been heard since this was asked last.
    pub(crate) fn take_hint(&mut self) -> Hint {
        let (abandoned, busy): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.writing).into_iter().partition(|(_, at)| at.elapsed() > ABANDONED);
        let mut hint = std::mem::take(&mut self.hint);
        for (name, _) in abandoned {
            hint.changed.insert(name.clone());
            hint.finished.insert(name);
        }
        hint.busy = busy.iter().map(|(name, _)| name.clone()).collect();
        self.writing = busy.into_iter().collect();
        hint
    }

    /// Whether the next event asks for a look.
    async fn next(&mut self) -> io::Result<bool> {
        match self.events.next().await {
            Some(event) => Ok(self.note(event?)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn note(&mut self, event: EventOwned) -> bool {
        let Some(name) = event.name else {
            // Of the folder itself, or more than the kernel could keep: all has to be looked at.
            self.writing.clear();
            self.hint.heard = true;
            return true;
        };
        if !concerns(&name) {
            return false;
        }
        if event.mask.contains(EventMask::MODIFY) {
            self.writing.insert(name, Instant::now());
            return false;
        }
        let is_done =
            EventMask::CLOSE_WRITE | EventMask::DELETE | EventMask::MOVED_FROM | EventMask::MOVED_TO;
        if event.mask.intersects(is_done) {
            self.writing.remove(&name);
            self.hint.finished.insert(name.clone());
        }
        self.hint.changed.insert(name);
        self.hint.heard = true;
        true
    }
}

/// Manifests, and `..data`, the link that a mounted ConfigMap's files go through.
fn concerns(name: &OsStr) -> bool {
    is_manifest(Path::new(name)) || name == "..data"
}

/// The folder to watch for `path`: itself, or for a file the one that it is in.
fn watched_folder(path: &Path) -> io::Result<PathBuf> {
    if fs::metadata(path)?.is_dir() {
        return Ok(path.to_owned());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok(parent.unwrap_or(Path::new(".")).to_owned())
}

fn identity(folder: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(folder).map(|metadata| (metadata.dev(), metadata.ino()))
}
