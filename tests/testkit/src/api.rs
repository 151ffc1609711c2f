//! The Kubernetes API as plain HTTP, through `kubectl proxy` in the control plane's namespace: milliseconds a request,
//! where each `kubectl` takes a quarter of a second.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::host::Host;

/// Where `kubectl proxy` listens, on the control plane's loopback.
pub(crate) const PROXY_PORT: u16 = 8001;

/// Longer than the API server takes for any single request.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Whom server-side apply notes as the owner of fields.
const FIELD_MANAGER: &str = "fieldManager=podway-testkit&force=true";

#[derive(Debug)]
pub(crate) struct Api {
    host: Host,
    /// By apiVersion and kind.
    resources: Mutex<BTreeMap<(String, String), Resource>>,
}

#[derive(Debug, Clone)]
struct Resource {
    /// The path up to the resource or its namespace, such as `/api/v1`.
    root: String,
    plural: String,
    namespaced: bool,
}

/// One request; `body` is JSON or YAML, as `content_type` says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) content_type: &'a str,
    pub(crate) body: &'a str,
}

impl Api {
    pub(crate) fn new(host: Host) -> Self {
        Self { host, resources: Mutex::new(BTreeMap::new()) }
    }

    /// Sends one request and reads the JSON it is answered with; a status other than 2xx is an error.
    pub(crate) fn request(&self, request: Request<'_>) -> Result<Value> {
        let (status, body) = self.exchange(request)?;
        if !(200..300).contains(&status) {
            bail!("{} {}: {status} {}", request.method, request.path, message(&body));
        }
        serde_json::from_str(&body).or_else(|_| Ok(Value::from(body)))
    }

    /// Sends a GET whose answer goes on for as long as the connection, such as a watch; what follows is to be read line
    /// by line. Chunk lengths are lines of their own.
    pub(crate) fn open(&self, path: &str) -> Result<TcpStream> {
        let stream = self.host.enter(|| TcpStream::connect((Ipv4Addr::LOCALHOST, PROXY_PORT)))?;
        let mut stream = stream.context("connect to kubectl proxy")?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n")?;
        Ok(stream)
    }

    /// Applies every document (server-side), and puts its status in place of the object's own.
    pub(crate) fn apply(&self, yaml: &str) -> Result<()> {
        for mut object in documents(yaml)? {
            let path = self.path(&object)?;
            let status = object.as_object_mut().and_then(|fields| fields.remove("status"));
            let applied = format!("{path}?{FIELD_MANAGER}");
            self.patch(&applied, "application/apply-patch+yaml", &object)?;
            // A merge, because server-side apply refuses a Node with two addresses of one type.
            if let Some(status) = status {
                let status = json!({ "status": status });
                self.patch(&format!("{path}/status"), "application/merge-patch+json", &status)?;
            }
        }
        Ok(())
    }

    /// Deletes the object of every document; what is not there is an error.
    pub(crate) fn delete(&self, yaml: &str) -> Result<()> {
        for object in documents(yaml)? {
            let path = self.path(&object)?;
            let content_type = "application/json";
            self.request(Request { method: "DELETE", path: &path, content_type, body: "" })?;
        }
        Ok(())
    }

    fn patch(&self, path: &str, content_type: &str, body: &Value) -> Result<Value> {
        self.request(Request { method: "PATCH", path, content_type, body: &body.to_string() })
    }

    fn path(&self, object: &Value) -> Result<String> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let (Some(version), Some(kind), Some(name)) =
            (text("/apiVersion"), text("/kind"), text("/metadata/name"))
        else {
            bail!("an object without apiVersion, kind or metadata.name: {object}");
        };
        let Resource { root, plural, namespaced } = self.resource(version, kind)?;
        if !namespaced {
            return Ok(format!("{root}/{plural}/{name}"));
        }
        let namespace = text("/metadata/namespace").unwrap_or("default");
        Ok(format!("{root}/namespaces/{namespace}/{plural}/{name}"))
    }

    /// Asks the API server once for the kinds of each apiVersion.
    fn resource(&self, version: &str, kind: &str) -> Result<Resource> {
        let key = (version.to_owned(), kind.to_owned());
        let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resource) = resources.get(&key) {
            return Ok(resource.clone());
        }
        let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
        let listed =
            self.request(Request { method: "GET", path: &root, content_type: "application/json", body: "" })?;
        for listed in listed["resources"].as_array().context("no list of resources")? {
            let (Some(plural), Some(kind)) = (listed["name"].as_str(), listed["kind"].as_str()) else {
                continue;
            };
            if !plural.contains('/') {
                let namespaced = listed["namespaced"] == true;
                let resource = Resource { root: root.clone(), plural: plural.to_owned(), namespaced };
                resources.insert((version.to_owned(), kind.to_owned()), resource);
            }
        }
        resources.get(&key).cloned().with_context(|| format!("the API server knows no {kind} in {version}"))
    }

    /// HTTP/1.0, so that the answer ends with the connection and is never chunked.
    fn exchange(&self, request: Request<'_>) -> Result<(u16, String)> {
        let Request { method, path, content_type, body } = request;
        let text = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\nContent-Type: {content_type}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = self.host.enter(|| -> std::io::Result<String> {
            let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, PROXY_PORT))?;
            connection.set_read_timeout(Some(TIMEOUT))?;
            connection.write_all(text.as_bytes())?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        parse(&answer.with_context(|| format!("{method} {path}"))?)
    }
}

/// The documents of a YAML text; empty ones are left out.
fn documents(yaml: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).context("read YAML")?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// The status and the body of an HTTP answer.
fn parse(answer: &str) -> Result<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no HTTP status")?;
    Ok((status, body.to_owned()))
}

/// What a `Status` object says, or else the whole body.
fn message(body: &str) -> String {
    let status: Option<Value> = serde_json::from_str(body).ok();
    status.and_then(|status| status["message"].as_str().map(str::to_owned)).unwrap_or_else(|| body.to_owned())
}
