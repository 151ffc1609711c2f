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

use self::document::read;
use self::folder::{Folder, Hint};
use self::watch::Watch;
use crate::outage::Outage;
use crate::{DirectoryConfig, Event, Kind, Problem};

/// How long a missing folder waits for the next try, and a change that inotify cannot see (on a network file
/// system, or behind a link) for being seen. A look without changes costs one `stat` a file.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Reads manifests from a text: the events of its objects, then of its problems. `file` is only the name in what is
/// reported.
pub fn read_manifests(file: &str, text: &str) -> Vec<Event> {
    let contents = read(file, text);
    let mut problems = contents.broken;
    let mut events = Vec::new();
    for (_, decoded) in contents.objects {
        events.push(decoded.event);
        problems.extend(decoded.problems);
    }
    events.into_iter().chain(problems.into_iter().map(Event::Problem)).collect()
}

/// Follows the folder until nobody listens any more.
pub(crate) async fn run(config: DirectoryConfig, events: Sender<Event>) {
    let follower = Follower {
        config,
        events: events.clone(),
        watch: None,
        is_synced: false,
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
    events: Sender<Event>,
    watch: Option<Watch>,
    is_synced: bool,
    /// The folder cannot be read.
    missing: Outage,
    /// The folder cannot be watched.
    unwatched: Outage,
}

/// The receiver is gone.
struct Closed;

impl Follower {
    async fn follow(mut self) -> Result<(), Closed> {
        let mut folder = Folder::new(self.config.path.clone());
        loop {
            let hint = self.watch_again().await?;
            let looked = tokio::task::spawn_blocking(move || {
                let found = folder.look(&hint);
                (folder, found)
            });
            // The look does not panic and is not aborted; were it, there is nothing left to follow.
            let Ok((kept, found)) = looked.await else { return Err(Closed) };
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

    async fn tell(&mut self, found: Vec<Event>) -> Result<(), Closed> {
        if let Some(lasted) = self.missing.over(Instant::now()) {
            let path = self.config.path.display();
            tracing::info!(%path, seconds = lasted.as_secs(), "readable again");
        }
        for event in found {
            self.send(event).await?;
        }
        if !self.is_synced {
            self.is_synced = true;
            for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
                self.send(Event::Synced(kind)).await?;
            }
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
        if let Ok(Err(error)) = time::timeout(LOOK_AGAIN, changed).await {
            tracing::debug!(%error, "the watch has ended");
            self.watch = None;
        }
    }

    async fn send(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }
}

fn missing(path: &Path, error: &io::Error) -> Problem {
    let seconds = LOOK_AGAIN.as_secs();
    Problem {
        subject: path.display().to_string(),
        field: String::new(),
        message: format!("{error}; what was read before stands, looked for again every {seconds} s"),
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
