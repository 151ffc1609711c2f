//! The `directory` source: a folder, or one file, of ordinary Kubernetes manifests, followed as it changes.
//!
//! Every look reads the files that have changed, tells of the objects that have changed, and forgets the objects of
//! files that are gone. It never forgets for want of reading: a broken file, an unreadable one or a folder that is
//! not there keep what they last said.

mod catalog;
mod document;
mod folder;
#[cfg(test)]
mod tests;
mod watch;

mod split;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future;
use tokio::sync::mpsc::Sender;
use tokio::time;

use self::folder::{Findings, Folder, Hint, SETTLED};
use self::watch::Watch;
use crate::outage::Outage;
use crate::{DirectoryConfig, Event, Problem, Wanted};

/// How long a missing folder waits for the next try, and a change that inotify cannot see (on a network file
/// system, or behind a link) for being seen. A look without changes costs one `stat` a file.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Follows what is wanted of the folder until nobody listens any more.
pub(crate) async fn run(config: DirectoryConfig, wanted: Wanted, events: Sender<Event>) {
    let follower = Follower {
        config,
        wanted,
        events: events.clone(),
        watch: None,
        listed: Listed::Nothing,
        missing: Outage::default(),
        unwatched: Outage::default(),
    };
    tokio::select! {
        () = events.closed() => {}
        _ = follower.follow() => {}
    }
}

struct Follower {
    config: DirectoryConfig,
    wanted: Wanted,
    events: Sender<Event>,
    watch: Option<Watch>,
    listed: Listed,
    /// The folder cannot be read.
    missing: Outage,
    /// The folder cannot be watched.
    unwatched: Outage,
}

/// How much of the first list has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listed {
    Nothing,
    Part,
    All,
}

/// The receiver is gone.
struct Closed;

impl Follower {
    async fn follow(mut self) -> Result<(), Closed> {
        let mut folder = Folder::new(self.config.path.clone(), self.wanted.clone());
        loop {
            let hint = self.watch_again().await?;
            let (kept, found) = off_the_loop(move || {
                let found = folder.look(&hint);
                (folder, found)
            })
            .await?;
            folder = kept;
            match found {
                Ok(found) => self.tell(found).await?,
                Err(error) => self.tell_missing(&error).await?,
            }
            self.wait().await;
        }
    }

    /// Makes sure that the folder is watched; what was heard meanwhile. Must come before the look, so that nothing
    /// slips in between.
    async fn watch_again(&mut self) -> Result<Hint, Closed> {
        let path = &self.config.path;
        if let Some(watch) = self.watch.as_mut().filter(|watch| watch.is_on(path)) {
            return Ok(watch.take_hint());
        }
        self.watch = match Watch::open(path) {
            Ok(watch) => Some(watch),
            Err(error) if !path.exists() => {
                tracing::debug!(path = %path.display(), %error, "not there to be watched");
                None
            }
            Err(error) => {
                if self.unwatched.failed(&error.to_string(), Instant::now()) {
                    self.send(Event::Problem(unwatched(path, &error))).await?;
                }
                return Ok(Hint::default());
            }
        };
        self.unwatched.over(Instant::now());
        Ok(Hint { heard: self.watch.is_some(), ..Hint::default() })
    }

    async fn tell(&mut self, found: Findings) -> Result<(), Closed> {
        if let Some(lasted) = self.missing.over(Instant::now()) {
            let path = self.config.path.display();
            tracing::info!(%path, seconds = lasted.as_secs(), "readable again");
        }
        for event in found.events {
            self.send(event).await?;
        }
        let (listed, said): (_, fn(_) -> _) = match (self.listed, found.is_complete) {
            (Listed::Nothing | Listed::Part, true) => (Listed::All, Event::Synced),
            (Listed::Nothing, false) => (Listed::Part, Event::Partial),
            (Listed::Part, false) | (Listed::All, _) => return Ok(()),
        };
        self.listed = listed;
        for kind in self.wanted.kinds() {
            self.send(said(kind)).await?;
        }
        Ok(())
    }

    async fn tell_missing(&mut self, error: &io::Error) -> Result<(), Closed> {
        if self.missing.failed(&error.to_string(), Instant::now()) {
            self.send(Event::Problem(missing(&self.config.path, error))).await?;
        }
        Ok(())
    }

    async fn wait(&mut self) {
        let changed = async {
            match &mut self.watch {
                Some(watch) => watch.changed().await,
                None => future::pending().await,
            }
        };
        // What is incomplete only because it is so new is complete by then.
        let longest = if self.listed == Listed::Part { SETTLED } else { LOOK_AGAIN };
        if let Ok(Err(error)) = time::timeout(longest, changed).await {
            tracing::debug!(%error, "the watch has ended");
            self.watch = None;
        }
    }

    async fn send(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }
}

/// Runs what blocks; its panic is the caller's.
async fn off_the_loop<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Closed> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime shuts down, and whoever listens with it.
        Err(_) => Err(Closed),
    }
}

fn missing(path: &Path, error: &io::Error) -> Problem {
    let seconds = LOOK_AGAIN.as_secs();
    Problem {
        subject: path.display().to_string(),
        field: String::new(),
        message: format!("{error}; what was read before stands, looked for again within {seconds} s"),
    }
}

fn unwatched(path: &Path, error: &io::Error) -> Problem {
    let seconds = LOOK_AGAIN.as_secs();
    Problem {
        subject: path.display().to_string(),
        field: String::new(),
        message: format!(
            "cannot be watched: {error} (sysctl fs.inotify.max_user_instances and max_user_watches limit this); \
             looked at every {seconds} s instead"
        ),
    }
}
