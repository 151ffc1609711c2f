//! One look at the folder: which files there are, which have changed, what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::catalog::Catalog;
use super::document::{broken, read};
use crate::{Event, Problem, Wanted};

/// A file that nothing was heard of, because its folder cannot be watched or it is a link to somewhere else, is
/// taken to be whole when it has not changed for this long.
pub(crate) const SETTLED: Duration = Duration::from_secs(1);

/// The folder, or the one file, and what was found there so far. Blocks: it reads files.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    wanted: Wanted,
    seen: BTreeMap<Arc<Path>, Seen>,
    catalog: Catalog,
}

/// What a look has found.
#[derive(Debug)]
pub(crate) struct Findings {
    /// What differs from before.
    pub(crate) events: Vec<Event>,
    /// Whether every file was read, to its end and without a broken document: nothing is there but what was told.
    pub(crate) is_complete: bool,
}

/// A file as it was read.
#[derive(Debug, Clone, Copy)]
struct Seen {
    signature: Signature,
    /// Whether it was heard that its writer was done.
    was_finished: bool,
}

/// What has been heard of the files since the last look.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hint {
    /// Names that have changed, whatever their times say.
    pub(crate) changed: BTreeSet<OsString>,
    /// Of these, names whose writer is done: closed, or moved into place.
    pub(crate) finished: BTreeSet<OsString>,
    /// Names that are being written at this moment: not to be read yet.
    pub(crate) busy: BTreeSet<OsString>,
    /// Whether it was heard at all that something changed. If not, a change may be half done.
    pub(crate) heard: bool,
}

/// Changes whenever the contents do, short of a write within one tick of the file system's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Folder {
    pub(crate) fn new(path: PathBuf, wanted: Wanted) -> Self {
        Self { path, wanted, seen: BTreeMap::new(), catalog: Catalog::default() }
    }

    /// Reads what has changed; returns what that changes in what is wanted.
    ///
    /// # Errors
    /// The folder cannot be listed, or the one file is not there. Nothing is forgotten then.
    pub(crate) fn look(&mut self, hint: &Hint) -> io::Result<Findings> {
        let present = self.present()?;
        let gone: Vec<Arc<Path>> =
            self.catalog.paths().filter(|path| !present.contains(*path)).cloned().collect();
        for path in gone {
            self.seen.remove(&path);
            self.catalog.remove(&path);
        }
        let mut all_read = true;
        for path in present {
            all_read &= self.look_at(&path, hint);
        }
        Ok(Findings { events: self.catalog.settle(), is_complete: all_read && self.catalog.is_whole() })
    }

    /// The manifests that are there now, links that lead nowhere included.
    fn present(&self) -> io::Result<BTreeSet<Arc<Path>>> {
        if !fs::metadata(&self.path)?.is_dir() {
            return Ok([Arc::from(self.path.as_path())].into());
        }
        let mut present = BTreeSet::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let is_folder = || fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_dir());
            if is_manifest(Path::new(&entry.file_name())) && !is_folder() {
                present.insert(entry.path().into());
            }
        }
        Ok(present)
    }

    /// Reads a file if need be; whether what it says now is known to its end.
    fn look_at(&mut self, path: &Arc<Path>, hint: &Hint) -> bool {
        let name = path.file_name().unwrap_or_default();
        if hint.busy.contains(name) {
            return false;
        }
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return self.unreadable(path, &error),
        };
        let signature = Signature::of(&metadata);
        let is_settled = is_settled(&metadata);
        if let Some(seen) = self.seen.get(path) {
            if seen.signature == signature && !hint.changed.contains(name) {
                return is_settled || seen.was_finished;
            }
            if !hint.heard && !is_settled {
                return false;
            }
        }
        match fs::read(path) {
            Err(error) => self.unreadable(path, &error),
            Ok(bytes) if fs::metadata(path).is_ok_and(|now| Signature::of(&now) == signature) => {
                let was_finished = hint.finished.contains(name);
                self.seen.insert(path.clone(), Seen { signature, was_finished });
                self.load(path, bytes);
                is_settled || was_finished
            }
            // Changed while it was read: whoever changes it makes itself heard, or the next look finds it settled.
            Ok(_) => false,
        }
    }

    fn load(&mut self, path: &Arc<Path>, bytes: Vec<u8>) {
        let file = path.display().to_string();
        match String::from_utf8(bytes) {
            Ok(text) => {
                let mut contents = read(&file, &text);
                contents.objects.retain(|(_, decoded)| self.wanted.includes(&decoded.key));
                self.catalog.load(path, contents);
            }
            Err(error) => {
                let (valid, _) = error.as_bytes().split_at(error.utf8_error().valid_up_to());
                let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
                self.catalog.unreadable(path, broken(&file, line, "not UTF-8"));
            }
        }
    }

    /// A file that is gone since the folder was listed is the next look's matter; anything else is told. False, as
    /// what it says is not known.
    fn unreadable(&mut self, path: &Arc<Path>, error: &io::Error) -> bool {
        if fs::symlink_metadata(path).is_err() {
            return false;
        }
        let problem = Problem {
            subject: path.display().to_string(),
            field: String::new(),
            message: format!("{error}; what the file said before stands until it can be read"),
        };
        self.catalog.unreadable(path, problem);
        self.seen.remove(path);
        false
    }
}

/// Whether a name in the folder is a manifest: `*.yaml`, `*.yml` or `*.json`. Names with a leading dot are not, and
/// with them the editors' temporary files and the folders behind a mounted ConfigMap; nor is `shop.yaml~`.
pub(crate) fn is_manifest(name: &Path) -> bool {
    let is_hidden = name.to_string_lossy().starts_with('.');
    !is_hidden && name.extension().is_some_and(|it| ["yaml", "yml", "json"].iter().any(|known| it == *known))
}

fn is_settled(metadata: &Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
    age.is_none_or(|age| age >= SETTLED)
}

impl Signature {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}
