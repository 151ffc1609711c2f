//! The unix socket by which commands ask the daemon of this node.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, error, info, warn};

use super::board::Board;
use super::http::{Doors, Pages, pause};

/// Another daemon may be about to end.
const BIND_AGAIN: Duration = Duration::from_secs(5);

/// A daemon that is alive answers in milliseconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// No daemon answers at the socket.
#[derive(Debug, thiserror::Error)]
#[error("no podway runs on this node: nobody answers at {} (status.socket): {cause}", path.display())]
pub(crate) struct NoDaemon {
    path: PathBuf,
    cause: io::Error,
}

/// Serves at a socket until dropped, which removes it. One that a dead daemon left is replaced, a living one's is not.
pub(crate) async fn serve(path: PathBuf, board: Board) {
    let mut complained = false;
    let (listener, _guard) = loop {
        match bind(&path).await {
            Ok(bound) => break bound,
            Err(error) if complained => debug!("status.socket: {error:#}"),
            Err(error) => {
                complained = true;
                match error.is::<AlreadyRuns>() {
                    true => error!("status.socket: {error:#}"),
                    false => warn!(again_every = ?BIND_AGAIN, "status.socket: {error:#}"),
                }
            }
        }
        tokio::time::sleep(BIND_AGAIN).await;
    };
    if complained {
        info!(path = %path.display(), "status.socket: listens now");
    }
    let mut doors = Doors::new(Pages::All, board);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => doors.admit(stream),
            Err(error) => pause(&error).await,
        }
    }
}

/// Asks the daemon for a page.
pub(crate) async fn ask(path: &Path, page: &str) -> Result<Bytes> {
    let stream = UnixStream::connect(path).await;
    let stream = stream.map_err(|cause| NoDaemon { path: path.to_owned(), cause })?;
    let answer = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(connection);
        let request = Request::get(page).header("host", "podway").body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        match status {
            StatusCode::OK => Ok(body),
            status => bail!("the daemon answers {status} to {page}; is it of another version?"),
        }
    };
    let answer = tokio::time::timeout(ANSWER_DEADLINE, answer).await;
    answer.with_context(|| format!("the daemon at {} does not answer", path.display()))?
}

/// Two daemons would undo each other's work.
#[derive(Debug, thiserror::Error)]
#[error(
    "another podway already runs on this node and answers at {}: two on one node undo each other's work; stop one of them",
    .0.display()
)]
struct AlreadyRuns(PathBuf);

/// Removes the socket, if it is still the one that was made.
struct Guard {
    path: PathBuf,
    inode: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Made beside and renamed: there is no moment in which others may connect, or in which there is none.
async fn bind(path: &Path) -> Result<(UnixListener, Guard)> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(AlreadyRuns(path.to_owned()).into());
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.mode() & 0o170_000 != 0o140_000 => {
            bail!("{} is there and is no socket", path.display())
        }
        _ => {}
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
    made.with_context(|| format!("cannot make {}", folder.display()))?;
    let beside = folder.join(format!(".podway.{}.sock", process::id()));
    let _ = fs::remove_file(&beside);
    let make = || -> io::Result<(UnixListener, u64)> {
        let listener = UnixListener::bind(&beside)?;
        fs::set_permissions(&beside, Permissions::from_mode(0o600))?;
        let inode = fs::symlink_metadata(&beside)?.ino();
        fs::rename(&beside, path)?;
        Ok((listener, inode))
    };
    let (listener, inode) = make().with_context(|| format!("cannot listen at {}", path.display()))?;
    Ok((listener, Guard { path: path.to_owned(), inode }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdListener;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("podway-socket-{}-{name}", process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[tokio::test]
    async fn x5_a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not() {
        let folder = folder("stale");
        let path = folder.join("run/podway.sock");
        let (listener, guard) = bind(&path).await.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o755));
        let error = bind(&path).await.map(drop).unwrap_err();
        assert!(error.to_string().starts_with("another podway already runs on this node"), "{error}");

        drop(listener);
        std::mem::forget(guard);
        assert!(path.exists(), "as after kill -9");
        let (_listener, guard) = bind(&path).await.unwrap();
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(guard);
        assert!(!path.exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn x5_what_is_no_socket_stays_and_a_successors_socket_stays() {
        let folder = folder("foreign");
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("podway.sock");
        fs::write(&path, "mine").unwrap();
        let error = bind(&path).await.map(drop).unwrap_err();
        assert!(error.to_string().ends_with("is there and is no socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");

        fs::remove_file(&path).unwrap();
        let (_listener, guard) = bind(&path).await.unwrap();
        fs::remove_file(&path).unwrap();
        let _successor = StdListener::bind(&path).unwrap();
        drop(guard);
        assert!(path.exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn x5_without_a_daemon_the_command_says_so() {
        let path = folder("none").join("podway.sock");
        let error = ask(&path, "/nodes").await.unwrap_err();
        assert!(error.is::<NoDaemon>());
        assert!(error.to_string().starts_with("no podway runs on this node: nobody answers at"), "{error}");
    }
}
