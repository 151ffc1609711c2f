//! Answers over HTTP: health, metrics, and what the commands ask.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tracing::{debug, info, warn};

use super::board::Board;
use super::metrics;
use super::report::{NodeStatus, Status};

/// One request, its answer, and a client in no hurry; probes give up after a second.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(10);

/// For the request's head.
const HEADER_DEADLINE: Duration = Duration::from_secs(1);

/// The least that hyper takes, and many times what a probe or Prometheus sends.
const HEADER_BYTES: usize = 8192;

/// Connections at a time.
const CONNECTIONS: usize = 32;

/// The address may be somebody else's for a while: an earlier daemon's that still ends, or an interface's to come.
const BIND_AGAIN: Duration = Duration::from_secs(5);

/// What one address answers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    /// `/healthz`, `/livez`, `/readyz`.
    Health,
    /// `/metrics`.
    Metrics,
    /// All of it, and `/nodes` and `/status`.
    All,
}

/// Serves pages at a TCP address, for ever.
pub(crate) async fn serve(
    address: SocketAddr,
    field: &'static str,
    pages: Pages,
    board: Board,
) -> Infallible {
    let mut complained = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if !complained => {
                warn!(%address, again_every = ?BIND_AGAIN, "{field}: cannot listen: {error}");
                complained = true;
            }
            Err(error) => debug!(%address, "{field}: cannot listen: {error}"),
        }
        tokio::time::sleep(BIND_AGAIN).await;
    };
    match complained {
        true => info!(%address, "{field}: listens now"),
        false => debug!(%address, "{field}: listens"),
    }
    let mut doors = Doors::new(pages, board);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => doors.admit(stream),
            Err(error) => pause(&error).await,
        }
    }
}

/// Out of file descriptors, mostly; it passes.
pub(crate) async fn pause(error: &std::io::Error) {
    warn!("cannot accept a connection: {error}");
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// Where connections come in, some at a time: a new one takes the place of the oldest, so that nobody can keep the
/// kubelet's probes out by holding connections open.
pub(crate) struct Doors {
    pages: Pages,
    board: Board,
    inside: VecDeque<AbortHandle>,
}

impl Doors {
    pub(crate) fn new(pages: Pages, board: Board) -> Self {
        Self { pages, board, inside: VecDeque::new() }
    }

    /// Serves one connection as a task of its own.
    pub(crate) fn admit(&mut self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        self.inside.retain(|connection| !connection.is_finished());
        if self.inside.len() >= CONNECTIONS
            && let Some(oldest) = self.inside.pop_front()
        {
            oldest.abort();
        }
        let (pages, board) = (self.pages, self.board.clone());
        let connection = tokio::task::spawn_local(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let answer = answer(pages, &board, request.method(), request.uri().path());
                async { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_DEADLINE)
                .max_buf_size(HEADER_BYTES)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_DEADLINE, connection).await {
                debug!("a request: {error}");
            }
        });
        self.inside.push_back(connection.abort_handle());
    }
}

fn answer(pages: Pages, board: &Board, method: &Method, path: &str) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n");
        refusal.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    let health = matches!(pages, Pages::Health | Pages::All);
    let numbers = matches!(pages, Pages::Metrics | Pages::All);
    match path {
        "/healthz" if health => state(board.health().healthy, board),
        "/livez" if health => state(board.health().live, board),
        "/readyz" if health => state(board.health().ready, board),
        "/metrics" if numbers => text(StatusCode::OK, metrics::CONTENT_TYPE, board.metrics()),
        "/nodes" if pages == Pages::All => {
            json(StatusCode::OK, &NodeStatus::all(&board.state(), Instant::now()))
        }
        "/status" if pages == Pages::All => json(StatusCode::OK, &Status::of(&board.state(), Instant::now())),
        _ => text(StatusCode::NOT_FOUND, "text/plain", "no such page\n"),
    }
}

fn state(well: bool, board: &Board) -> Response<Full<Bytes>> {
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &board.health())
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string(value) {
        Ok(body) => text(status, "application/json", body + "\n"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
    }
}

fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::super::board::Half;
    use super::*;

    fn status(pages: Pages, board: &Board, path: &str) -> u16 {
        answer(pages, board, &Method::GET, path).status().as_u16()
    }

    #[test]
    fn n15_each_address_answers_to_its_own_pages() {
        let board = Board::new("node-1");
        board.expect(Half::Network);
        board.programmed(Half::Network, Duration::ZERO);
        for (pages, known, unknown) in [
            (
                Pages::Health,
                vec!["/healthz", "/livez", "/readyz"],
                vec!["/metrics", "/nodes", "/status", "/"],
            ),
            (Pages::Metrics, vec!["/metrics"], vec!["/healthz", "/nodes", "/status"]),
            (Pages::All, vec!["/healthz", "/metrics", "/nodes", "/status"], vec!["/", "/nodes/"]),
        ] {
            known.iter().for_each(|path| assert_eq!(status(pages, &board, path), 200, "{pages:?} {path}"));
            unknown.iter().for_each(|path| assert_eq!(status(pages, &board, path), 404, "{pages:?} {path}"));
        }
        let post = answer(Pages::Health, &board, &Method::POST, "/healthz");
        assert_eq!((post.status().as_u16(), &post.headers()[ALLOW]), (405, &"GET, HEAD".parse().unwrap()));
    }

    #[test]
    fn n15_readyz_turns_when_the_half_is_programmed() {
        let board = Board::new("node-1");
        board.expect(Half::Network);
        assert_eq!(status(Pages::Health, &board, "/readyz"), 503);
        assert_eq!(status(Pages::Health, &board, "/healthz"), 200);
        board.programmed(Half::Network, Duration::from_millis(1));
        assert_eq!(status(Pages::Health, &board, "/readyz"), 200);
    }
}
