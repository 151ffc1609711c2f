//! A scripted API server behind the real client.

use std::collections::{BTreeMap, VecDeque};
use std::future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::channel::Channel;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::timeout;
use tower::BoxError;

use super::contact::{Address, Contact, Observed};
use super::{ApiServer, NodeWriter};
use crate::{Event, Kind, KubeConfig, Nodes, Wanted};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_streamed_list_ends_in_synced_and_the_selection_is_the_contracts() {
    let server = Script::default();
    server.on(SERVICES, [watch(&[added("a", 1), bookmark(5)])]);
    server.on(SLICES, [watch(&[bookmark(5)])]);
    server.on(NODES, [watch(&[json!({"type": "ADDED", "object": a_node("n1")}), bookmark(5)])]);
    let mut told = server.run().until_synced().await;
    told.sort();
    assert_eq!(told, ["Node n1", "default/a 1"]);
    let asked = |kind: &str| server.asked(kind).remove(0);
    assert!(asked(SERVICES).contains("labelSelector=%21service.kubernetes.io%2Fservice-proxy-name"));
    assert!(asked(SERVICES).contains("fieldSelector=spec.clusterIP%21%3DNone"));
    assert!(asked(SERVICES).contains("sendInitialEvents=true"));
    assert!(asked(SLICES).contains("labelSelector=%21service.kubernetes.io%2Fheadless"));
    assert!(!asked(SLICES).contains("fieldSelector") && !asked(NODES).contains("Selector"));
}

#[tokio::test]
async fn a_server_without_streamed_lists_is_listed_from_its_cache() {
    let server = Script::synced_but_services();
    let list = json!({"metadata": {"resourceVersion": "7"}, "items": [a_service("a", 1), a_service("b", 1)]});
    server.on(
        SERVICES,
        [
            refusal(
                422,
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            ),
            Answer::Json(200, list),
            watch(&[added("c", 8)]),
        ],
    );
    let mut told = server.run().until("default/c 8").await;
    told.retain(|event| event.starts_with("default"));
    assert_eq!(told, ["default/a 1", "default/b 1", "default/c 8"]);
    let asked = server.asked(SERVICES);
    assert!(asked[1].contains("resourceVersion=0&resourceVersionMatch=NotOlderThan"), "{}", asked[1]);
    assert!(asked[2].contains("watch=true") && asked[2].contains("resourceVersion=7"), "{}", asked[2]);
}

#[tokio::test]
async fn s24_after_a_version_that_is_gone_only_what_differs_is_told() {
    let server = Script::synced_but_services();
    server.on(
        SERVICES,
        [
            watch(&[added("a", 1), added("b", 1), added("c", 1), bookmark(5), expired()]),
            watch(&[added("a", 1), added("c", 9), bookmark(10)]),
        ],
    );
    let mut source = server.run();
    source.until_synced().await;
    assert_eq!([source.next().await, source.next().await], ["default/c 9", "default/b gone"]);
}

#[tokio::test]
async fn a_list_that_breaks_off_removes_nothing() {
    let server = Script::synced_but_services();
    server.on(
        SERVICES,
        [
            watch(&[added("a", 1), added("b", 1), bookmark(5), expired()]),
            Answer::Ends(lines(&[added("a", 1)])),
            watch(&[added("a", 1), added("b", 1), added("c", 12), bookmark(13)]),
        ],
    );
    let mut source = server.run();
    source.until_synced().await;
    assert_eq!(source.next().await, "default/c 12", "neither a nor b was told again or removed");
}

#[tokio::test]
async fn s24_a_broken_watch_goes_on_from_where_it_was() {
    let server = Script::synced_but_services();
    server.on(
        SERVICES,
        [
            Answer::Ends(lines(&[added("a", 1), bookmark(5)])),
            Answer::Cut,
            watch(&[changed("a", 6), deleted("a", 7)]),
        ],
    );
    let mut source = server.run();
    source.until_synced().await;
    assert!(source.next().await.starts_with("problem API server http://192.0.2.1: cut off;"));
    assert_eq!([source.next().await, source.next().await], ["default/a 6", "default/a gone"]);
    assert!(server.asked(SERVICES)[2].contains("resourceVersion=5"));
}

#[tokio::test]
async fn s1_a_label_that_takes_a_service_away_removes_it() {
    let server = Script::synced_but_services();
    let mut taken = changed("a", 6);
    taken["object"]["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    server.on(SERVICES, [watch(&[added("a", 1), bookmark(5), taken])]);
    let mut told = server.run().until("default/a gone").await;
    told.retain(|event| event.starts_with("default"));
    assert_eq!(told, ["default/a 1", "default/a gone"]);
}

#[tokio::test]
async fn one_server_that_cannot_be_reached_is_one_problem() {
    let server = Script::default();
    for kind in [SERVICES, SLICES, NODES] {
        server.on(kind, [Answer::Cut, Answer::Cut, watch(&[bookmark(5)])]);
    }
    let told = server.run().until_synced().await;
    assert_eq!(told, ["problem API server http://192.0.2.1: cut off; what is known stands, trying again"]);
}

#[tokio::test]
async fn s24_a_lost_server_is_told_once_and_once_when_all_kinds_are_answered_again() {
    let server = Script::synced_but_services();
    server.on(SERVICES, [Answer::Cut, Answer::Cut, watch(&[bookmark(5)])]);
    let Source(mut events) = server.run();
    let mut contacts = Vec::new();
    while contacts.len() < 2 {
        let event = timeout(SOON, events.recv()).await.expect("an event in time").expect("a running source");
        if let Event::Contact { server, lost } = event {
            contacts.push((server, lost));
        }
    }
    let name = "API server http://192.0.2.1".to_owned();
    assert_eq!(contacts, [(name.clone(), Some("cut off".to_owned())), (name, None)]);
}

#[tokio::test]
async fn nobody_at_the_address_is_said_with_the_url_and_the_reason() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = format!("http://127.0.0.1:{port}");
    let config = KubeConfig { server: Some(server.clone()), ..KubeConfig::default() };
    let (sender, events) = mpsc::channel(8);
    tokio::spawn(run(ApiServer::open(&config).await.unwrap(), Wanted::everything(), sender));
    let problem = Source(events).next().await;
    let expected =
        format!("problem API server {server}: Connection refused (os error 111); what is known stands");
    assert!(problem.starts_with(&expected), "{problem}");
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_and_the_other_kinds_go_on() {
    let server = Script::default();
    server.on(SERVICES, [watch(&[added("a", 1), bookmark(5)])]);
    server.on(SLICES, [watch(&[bookmark(5)])]);
    server.on(NODES, [refusal(403, "nodes is forbidden"), watch(&[bookmark(5)])]);
    let mut told = server.run().until_synced().await;
    told.sort();
    assert_eq!(
        told,
        [
            "default/a 1",
            "problem API server http://192.0.2.1: 403 nodes is forbidden; what is known stands, trying again"
        ]
    );
}

#[tokio::test]
async fn n5_annotations_are_one_strategic_patch_to_the_nodes_status() {
    let server = Script::default();
    server.on("/api/v1/nodes/n1/status", [Answer::Json(200, a_node("n1"))]);
    let data = "{\"VNI\":1,\"VtepMAC\":\"0a:1b:2c:3d:4e:5f\"}".to_owned();
    server
        .writer()
        .annotate("n1", &BTreeMap::from([("backend-data".to_owned(), data.clone())]))
        .await
        .unwrap();
    let request = server.requests().remove(0);
    assert_eq!((request.method.as_str(), request.uri.path()), ("PATCH", "/api/v1/nodes/n1/status"));
    assert_eq!(request.content_type, "application/strategic-merge-patch+json");
    let annotations = json!({"flannel.alpha.coreos.com/backend-data": data});
    assert_eq!(request.body, json!({"metadata": {"annotations": annotations}}));
}

#[tokio::test]
async fn n18_the_network_condition_is_set_to_false() {
    let server = Script::default();
    server.on(
        "/api/v1/nodes/n1/status",
        [Answer::Json(200, a_node("n1")), refusal(404, "nodes \"n1\" not found")],
    );
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_714_521_601_500);
    server.writer().network_available("n1", now).await.unwrap();
    let condition = &server.requests()[0].body["status"]["conditions"][0];
    assert_eq!((&condition["type"], &condition["status"]), (&json!("NetworkUnavailable"), &json!("False")));
    assert_eq!(condition["lastTransitionTime"], "2024-05-01T00:00:01Z");
    let error = server.writer().network_available("n1", now).await.unwrap_err();
    assert_eq!(error.to_string(), "patching Node n1: 404 nodes \"n1\" not found");
    assert!(error.is_final());
}

#[tokio::test]
async fn the_source_ends_when_nobody_listens() {
    let server = Script::synced_but_services();
    server.on(SERVICES, [watch(&[bookmark(5)])]);
    let (sender, events) = mpsc::channel(1);
    let task = tokio::spawn(run(server.api_server(), Wanted::everything(), sender));
    drop(events);
    timeout(SOON, task).await.unwrap().unwrap();
}

#[tokio::test]
async fn s1_only_what_is_wanted_is_asked_for() {
    let server = Script::synced_but_services();
    server.on(SERVICES, [watch(&[bookmark(5)])]);
    let own = Wanted { services: true, nodes: Nodes::Only("n1".into()), service_cidrs: false };
    let mut source = server.run_for(own);
    source.until_synced().await;
    assert!(server.asked(NODES)[0].contains("fieldSelector=metadata.name%3Dn1"), "{:?}", server.asked(NODES));
    assert_eq!(server.asked(SERVICE_CIDRS), [""; 0]);
    let server = Script::synced_but_services();
    let mut source = server.run_for(Wanted { services: false, nodes: Nodes::All, service_cidrs: false });
    assert_eq!([source.next().await, source.next().await], ["Node n1", "Synced(Node)"]);
    assert_eq!((server.asked(SERVICES), server.asked(SLICES)), (vec![], vec![]));
}

const ONLY_RANGES: Wanted = Wanted { services: false, nodes: Nodes::None, service_cidrs: true };

#[tokio::test]
async fn s10_the_ranges_of_services_are_followed() {
    let server = Script::default();
    let range = |kind: &str, version: u16, cidrs: Value| {
        let metadata = json!({"name": "kubernetes", "resourceVersion": version.to_string()});
        json!({"type": kind, "object": {"metadata": metadata, "spec": {"cidrs": cidrs}}})
    };
    let added = range("ADDED", 1, json!(["10.96.0.0/12", "fd96::/112"]));
    let changed = range("MODIFIED", 6, json!(["10.96.0.0/16", "many"]));
    let deleted = range("DELETED", 7, json!([]));
    server.on(SERVICE_CIDRS, [watch(&[added, bookmark(5), changed, deleted])]);
    let told = server.run_for(ONLY_RANGES).until("ServiceCidr(\"kubernetes\", None)").await;
    assert_eq!(
        told,
        [
            "ServiceCidr(\"kubernetes\", Some([10.96.0.0/12, fd96::/112]))",
            "Synced(ServiceCidr)",
            "problem ServiceCIDR kubernetes: spec.cidrs[1]: \"many\" is no CIDR; skipped",
            "ServiceCidr(\"kubernetes\", Some([10.96.0.0/16]))",
            "ServiceCidr(\"kubernetes\", None)",
        ]
    );
}

#[tokio::test]
async fn s10_a_server_without_the_ranges_of_services_or_the_right_to_them_has_none_and_is_not_asked_at_once_again()
 {
    for answer in
        [refusal(404, "the server could not find the requested resource"), refusal(403, "forbidden")]
    {
        let server = Script::default();
        server.on(SERVICE_CIDRS, [answer]);
        let mut source = server.run_for(ONLY_RANGES);
        assert_eq!(source.next().await, "Synced(ServiceCidr)");
        // Other failures are tried again after a quarter of a second.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(server.asked(SERVICE_CIDRS).len(), 1);
        assert!(source.0.try_recv().is_err(), "nothing more is told");
    }
}

#[tokio::test]
async fn a_source_of_nothing_waits_like_any_other() {
    let server = Script::default();
    let (sender, events) = mpsc::channel(1);
    let nothing = Wanted { services: false, nodes: Nodes::None, service_cidrs: false };
    let mut task = tokio::spawn(run(server.api_server(), nothing, sender));
    assert!(timeout(Duration::from_millis(100), &mut task).await.is_err(), "ended while somebody listens");
    assert_eq!(server.requests().len(), 0);
    drop(events);
    timeout(SOON, task).await.unwrap().unwrap();
}

#[tokio::test]
async fn s23_the_services_own_address_is_told_at_the_start_and_with_every_failure_to_reach_it() {
    let server = Script::default();
    for kind in [SERVICES, SLICES, NODES] {
        server.on(kind, [Answer::Cut, watch(&[bookmark(5)])]);
    }
    let contact = Arc::new(Contact::new(&Uri::from_static("http://192.0.2.1"), Address::Service));
    let (sender, events) = mpsc::channel(8);
    tokio::spawn(run(server.api_server_by(contact), Wanted::everything(), sender));
    let told = Source(events).until_synced().await;
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with("problem API server http://192.0.2.1: this is the address of Service"),
        "{told:?}"
    );
    assert!(
        told[1].starts_with("problem API server http://192.0.2.1: cut off; this is the address"),
        "{told:?}"
    );
    for problem in told {
        assert!(problem.contains("set source.kube.server to the API server's own address"), "{problem}");
    }
}

#[tokio::test]
async fn a_panic_within_comes_out_of_the_source() {
    let server = Script::synced_but_services();
    server.on(SERVICES, [watch(&[added("a", 1), bookmark(5), expired()]), Answer::Panics]);
    let (sender, mut events) = mpsc::channel(64);
    let task = tokio::spawn(run(server.api_server(), Wanted::everything(), sender));
    let ended = timeout(SOON, task).await.expect("an end in time").unwrap_err();
    assert!(ended.is_panic());
    while events.recv().await.is_some() {}
}

async fn run(server: ApiServer, wanted: Wanted, events: Sender<Event>) {
    server.run(&wanted, events).await;
}

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const NODES: &str = "/api/v1/nodes";
const SERVICE_CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";

/// What the server does with a request.
#[derive(Clone)]
enum Answer {
    /// Answers whole.
    Json(u16, Value),
    /// Sends this and leaves the connection open and silent.
    Stays(String),
    /// Sends this and ends the connection.
    Ends(String),
    /// Ends the connection instead of answering.
    Cut,
    /// Is a bug of the client's.
    Panics,
}

struct Seen {
    method: String,
    uri: Uri,
    content_type: String,
    body: Value,
}

/// An API server that gives each path its answers in turn and leaves further requests unanswered.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Progress>>);

#[derive(Default)]
struct Progress {
    answers: BTreeMap<String, VecDeque<Answer>>,
    seen: Vec<Seen>,
}

impl Script {
    fn synced_but_services() -> Self {
        let server = Self::default();
        server.on(SLICES, [watch(&[bookmark(5)])]);
        server.on(NODES, [watch(&[json!({"type": "ADDED", "object": a_node("n1")}), bookmark(5)])]);
        server
    }

    fn on(&self, path: &str, answers: impl IntoIterator<Item = Answer>) {
        self.0.lock().unwrap().answers.insert(path.to_owned(), answers.into_iter().collect());
    }

    fn api_server(&self) -> ApiServer {
        self.api_server_by(Arc::new(Contact::new(&Uri::from_static("http://192.0.2.1"), Address::Own)))
    }

    fn api_server_by(&self, contact: Arc<Contact>) -> ApiServer {
        let script = self.clone();
        let service = tower::service_fn(move |request| script.clone().answer(request));
        let client = Client::new(Observed::new(service, contact.clone()), "default");
        ApiServer { client, contact }
    }

    fn run(&self) -> Source {
        self.run_for(Wanted::everything())
    }

    fn run_for(&self, wanted: Wanted) -> Source {
        let (sender, events) = mpsc::channel(8);
        tokio::spawn(run(self.api_server(), wanted, sender));
        Source(events)
    }

    fn writer(&self) -> NodeWriter {
        self.api_server().node_writer()
    }

    fn requests(&self) -> Vec<Seen> {
        std::mem::take(&mut self.0.lock().unwrap().seen)
    }

    /// The queries of the requests for a path so far.
    fn asked(&self, path: &str) -> Vec<String> {
        let state = self.0.lock().unwrap();
        let requests = state.seen.iter().filter(|seen| seen.uri.path() == path);
        requests.map(|seen| seen.uri.query().unwrap_or_default().to_owned()).collect()
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Channel<Bytes>>, BoxError> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await?;
        let content_type = head.headers.get("content-type").map(|it| it.to_str().unwrap().to_owned());
        let seen = Seen {
            method: head.method.to_string(),
            uri: head.uri.clone(),
            content_type: content_type.unwrap_or_default(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        };
        let answer = {
            let mut state = self.0.lock().unwrap();
            state.seen.push(seen);
            state.answers.get_mut(head.uri.path()).and_then(VecDeque::pop_front)
        };
        let (status, text, stays) = match answer {
            None => future::pending().await,
            Some(Answer::Cut) => return Err("cut off".into()),
            Some(Answer::Panics) => panic!("a bug"),
            Some(Answer::Json(status, json)) => (status, json.to_string(), false),
            Some(Answer::Stays(text)) => (200, text, true),
            Some(Answer::Ends(text)) => (200, text, false),
        };
        let (mut sender, body) = Channel::new(1);
        tokio::spawn(async move {
            sender.send_data(text.into()).await.unwrap();
            if stays {
                future::pending::<()>().await;
            }
        });
        Ok(Response::builder().status(StatusCode::from_u16(status)?).body(body)?)
    }
}

struct Source(Receiver<Event>);

impl Source {
    async fn next(&mut self) -> String {
        shown(&self.receive().await)
    }

    /// What is told until all three kinds are synced.
    async fn until_synced(&mut self) -> Vec<String> {
        let (mut told, mut missing) = (Vec::new(), vec![Kind::Service, Kind::EndpointSlice, Kind::Node]);
        while !missing.is_empty() {
            match self.receive().await {
                Event::Synced(kind) => missing.retain(|other| *other != kind),
                event => told.push(shown(&event)),
            }
        }
        told
    }

    /// What is told up to this.
    async fn until(&mut self, last: &str) -> Vec<String> {
        let mut told = Vec::new();
        while told.last().is_none_or(|event| event != last) {
            told.push(self.next().await);
        }
        told
    }

    /// Of anything but the contact to the server, which is told at its own pace.
    async fn receive(&mut self) -> Event {
        loop {
            let event = timeout(SOON, self.0.recv()).await.expect("an event in time");
            match event.expect("a running source") {
                Event::Contact { .. } => {}
                event => return event,
            }
        }
    }
}

fn watch(events: &[Value]) -> Answer {
    Answer::Stays(lines(events))
}

fn lines(events: &[Value]) -> String {
    events.iter().map(|event| format!("{event}\n")).collect()
}

fn refusal(code: u16, message: &str) -> Answer {
    Answer::Json(code, json!({"kind": "Status", "status": "Failure", "code": code, "message": message}))
}

fn added(name: &str, version: u16) -> Value {
    json!({"type": "ADDED", "object": a_service(name, version)})
}

fn changed(name: &str, version: u16) -> Value {
    json!({"type": "MODIFIED", "object": a_service(name, version)})
}

fn deleted(name: &str, version: u16) -> Value {
    json!({"type": "DELETED", "object": a_service(name, version)})
}

/// What a watch ends with when its version is gone from the server's memory.
fn expired() -> Value {
    json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}})
}

/// The bookmark that ends a streamed list.
fn bookmark(version: u16) -> Value {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    let metadata = json!({"resourceVersion": version.to_string(), "annotations": annotations});
    json!({"type": "BOOKMARK", "object": {"kind": "Service", "apiVersion": "v1", "metadata": metadata}})
}

/// A Service whose port is its version.
fn a_service(name: &str, version: u16) -> Value {
    json!({
        "metadata": {"name": name, "resourceVersion": version.to_string(), "managedFields": [{"manager": "kubectl"}]},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": version}]},
    })
}

fn a_node(name: &str) -> Value {
    json!({"metadata": {"name": name, "resourceVersion": "1"}})
}

fn shown(event: &Event) -> String {
    match event {
        Event::Service(name, Some(service)) => format!("{name} {}", service.ports[0].port),
        Event::Service(name, None) => format!("{name} gone"),
        Event::Node(name, Some(_)) => format!("Node {name}"),
        Event::Problem(problem) => format!("problem {problem}"),
        other => format!("{other:?}"),
    }
}
