//! The pod's network namespace.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::error::Error;

/// A pod's network namespace, held open.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) file: File,
}

impl Namespace {
    /// Opens what `CNI_NETNS` names; the node's own namespace is refused.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let refused = |cause: io::Error| Error::NoNamespace { path: path.to_owned(), cause };
        let file = File::open(path).map_err(refused)?;
        let found = file.metadata().map_err(refused)?;
        let own =
            std::fs::metadata("/proc/self/ns/net").map_err(Error::file("look at", "/proc/self/ns/net"))?;
        if (found.dev(), found.ino()) == (own.dev(), own.ino()) {
            return Err(Error::Environment("CNI_NETNS is the node's own network namespace".to_owned()));
        }
        Ok(Self { file })
    }

    /// Does `work` on a thread inside the namespace: nothing of this process stays in there.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let entered = setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
                entered.map_err(Error::kernel("enter the pod's network namespace"))?;
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
