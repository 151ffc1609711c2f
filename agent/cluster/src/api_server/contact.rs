//! Whether the API server answers, and what is told of it.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response, Uri};
use kube::client::Body;
use podway_proxy::ObjectName;
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;
use tower::{BoxError, Service};

use crate::outage::Outage;
use crate::{Event, Kind, Problem};

/// A server that takes a request and then says nothing for this long is as good as gone. An overloaded one may well
/// take ten seconds for a large list.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// What is wrong with an address that podway itself provides (contract S23), and what to do about it.
const DEPENDENCE: &str = "this is the address of Service default/kubernetes, which does not work before podway does; \
                          set source.kube.server to the API server's own address";

/// The state of all requests to one server: three watches that fail for one reason are one problem.
#[derive(Debug)]
pub(super) struct Contact {
    server: Uri,
    address: Address,
    state: Mutex<State>,
    /// Why there is no answer, if there is none.
    lost: watch::Sender<Option<String>>,
}

#[derive(Debug, Default)]
struct State {
    failing: BTreeSet<Kind>,
    outage: Outage,
}

/// What is known of the server's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Address {
    /// As far as is known, the server's own.
    Own,
    /// That of Service default/kubernetes, as the kubelet tells every pod.
    Service,
}

/// Why a list or watch has failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server was reached and says so.
    Refused(String),
    /// There was no answer.
    Unreached(String),
}

impl Contact {
    pub(super) fn new(server: &Uri, address: Address) -> Self {
        Self { server: server.clone(), address, state: Mutex::default(), lost: watch::Sender::default() }
    }

    /// Tells when the server is lost and when it answers again, until nobody listens.
    pub(super) async fn tell(&self, events: &Sender<Event>) {
        let mut changes = self.lost.subscribe();
        let mut told = None;
        loop {
            let lost = changes.borrow_and_update().clone();
            if lost != told {
                told.clone_from(&lost);
                let event = Event::Contact { server: self.subject(), lost };
                if events.send(event).await.is_err() {
                    return;
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// The problem to tell before anything is tried: it goes unnoticed while something else, such as the
    /// kube-proxy that podway is to replace, provides the Service still.
    pub(super) fn doubt(&self) -> Option<Problem> {
        (self.address == Address::Service).then(|| self.problem(DEPENDENCE.to_owned()))
    }

    /// Notes that a list or watch has failed; the problem, if it is to be told.
    pub(super) fn failed(&self, kind: Kind, failure: &Failure, now: Instant) -> Option<Problem> {
        let mut state = self.state();
        state.failing.insert(kind);
        let (Failure::Refused(reason) | Failure::Unreached(reason)) = failure;
        let hint = match (failure, self.address) {
            (Failure::Unreached(_), Address::Service) => format!("; {DEPENDENCE}"),
            _ => String::new(),
        };
        self.lost.send_if_modified(|lost| {
            let is_news = lost.is_none();
            lost.get_or_insert_with(|| reason.clone());
            is_news
        });
        let message = format!("{reason}{hint}; what is known stands, trying again");
        state.outage.failed(reason, now).then(|| self.problem(message))
    }

    /// Notes that a list or watch works. Says so in the log when it was the last that did not.
    pub(super) fn answered(&self, kind: Kind, now: Instant) {
        let mut state = self.state();
        state.failing.remove(&kind);
        if !state.failing.is_empty() {
            return;
        }
        self.lost.send_if_modified(|lost| lost.take().is_some());
        if let Some(lasted) = state.outage.over(now) {
            tracing::info!(server = %self.server, seconds = lasted.as_secs(), "API server answers again");
        }
    }

    /// The problem of a server whose address turns out to be one that podway itself provides (contract S23): it
    /// comes to light when that Service is seen, unless it was told at once.
    pub(super) fn dependence(&self, event: &Event) -> Option<Problem> {
        let Event::Service(name, Some(service)) = event else { return None };
        let host: IpAddr = self.server.host()?.trim_matches(['[', ']']).parse().ok()?;
        let is_own_service = *name == ObjectName::new("default", "kubernetes");
        let is_news = self.address == Address::Own && is_own_service && service.cluster_ips.contains(&host);
        is_news.then(|| self.problem(DEPENDENCE.to_owned()))
    }

    fn problem(&self, message: String) -> Problem {
        Problem { subject: self.subject(), field: String::new(), message }
    }

    fn subject(&self) -> String {
        let server = self.server.to_string();
        format!("API server {}", server.trim_end_matches('/'))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What lies at the bottom of an error: the layers above only repeat that something failed.
pub(super) fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// A client's service that limits the wait for an answer and tells [`Contact`] of every list or watch that was
/// answered: a watch that starts anew and has nothing to say is seen nowhere else.
pub(super) struct Observed<S> {
    inner: S,
    contact: Arc<Contact>,
}

impl<S> Observed<S> {
    pub(super) fn new(inner: S, contact: Arc<Contact>) -> Self {
        Self { inner, contact }
    }
}

impl<S, B> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let kind = listed_kind(&request);
        let contact = self.contact.clone();
        let response = self.inner.call(request);
        Box::pin(async move {
            let Ok(response) = tokio::time::timeout(RESPONSE_TIMEOUT, response).await else {
                return Err(format!("no answer within {} s", RESPONSE_TIMEOUT.as_secs()).into());
            };
            let response = response.map_err(Into::into)?;
            if let Some(kind) = kind.filter(|_| response.status().is_success()) {
                contact.answered(kind, Instant::now());
            }
            Ok(response)
        })
    }
}

/// The kind that a request lists or watches.
fn listed_kind(request: &Request<Body>) -> Option<Kind> {
    match request.uri().path().rsplit('/').next()? {
        "services" => Some(Kind::Service),
        "endpointslices" => Some(Kind::EndpointSlice),
        "nodes" => Some(Kind::Node),
        "servicecidrs" => Some(Kind::ServiceCidr),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::decode::Decode;

    #[test]
    fn one_reason_for_three_kinds_is_told_once_with_the_url() {
        let contact = Contact::new(&Uri::from_static("https://192.0.2.1:6443"), Address::Own);
        let refused = Failure::Unreached("connection refused".to_owned());
        let now = Instant::now();
        let problem = contact.failed(Kind::Service, &refused, now).unwrap();
        assert_eq!(
            problem.to_string(),
            "API server https://192.0.2.1:6443: connection refused; what is known stands, trying again"
        );
        assert_eq!(contact.failed(Kind::Node, &refused, now), None);
        contact.answered(Kind::Service, now);
        assert_eq!(contact.state().failing, [Kind::Node].into(), "the outage goes on for Nodes");
        contact.answered(Kind::Node, now);
        assert_eq!(contact.state().outage.over(now), None, "told that it is over");
    }

    #[test]
    fn s23_a_server_behind_its_own_service_is_a_problem() {
        let text =
            json!({"metadata": {"name": "kubernetes"}, "spec": {"clusterIPs": ["fd00::1", "10.96.0.1"]}});
        let service: crate::manifest::Service = serde_json::from_value(text).unwrap();
        let event = service.decode().unwrap().event;
        for (server, told) in
            [("https://10.96.0.1", true), ("https://[fd00::1]:443", true), ("https://192.0.2.1", false)]
        {
            let contact = Contact::new(&Uri::from_static(server), Address::Own);
            assert_eq!(contact.dependence(&event).is_some(), told, "{server}");
        }
    }

    #[test]
    fn s23_a_service_address_that_cannot_be_reached_is_named_as_the_reason_and_what_to_do() {
        let contact = Contact::new(&Uri::from_static("https://10.96.0.1"), Address::Service);
        let now = Instant::now();
        let told = |failure| contact.failed(Kind::Service, &failure, now).unwrap().message;
        let silent = told(Failure::Unreached("no route to host".to_owned()));
        assert_eq!(silent, format!("no route to host; {DEPENDENCE}; what is known stands, trying again"));
        let refused = told(Failure::Refused("403 forbidden".to_owned()));
        assert_eq!(refused, "403 forbidden; what is known stands, trying again", "it was reached");
    }
}
