//! A real control plane on the underlay: etcd and kube-apiserver, and kube-controller-manager on demand.

use std::fmt::Display;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::api::{Api, PROXY_PORT, Request};
use crate::binaries::reference;
use crate::etcd::{ETCD_PORT, etcd};
use crate::eventually::within;
use crate::host::Host;
use crate::process::Process;
use crate::site::Site;

/// The ranges that the API server takes clusterIPs from.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";

/// The ranges that [`ControlPlane::allocate_pod_cidrs`] takes podCIDRs from, a /24 and a /64 for each Node.
pub const POD_CIDRS: &str = "10.244.0.0/16,fd00:10:244::/56";

/// Its host is 192.0.2.2 and 2001:db8::2 on every underlay.
const NUMBER: u8 = 2;
const API_PORT: u16 = 6443;

/// Of the administrator, whose group is system:masters.
const ADMIN_TOKEN: &str = "podway-testkit-admin";

/// Only what ServiceAccounts ask, so that the tests' own requests cost nothing.
const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
                            - {level: Metadata, userGroups: ['system:serviceaccounts']}\n- {level: None}\n";

/// Ready within four seconds on an idle machine with two cores; many labs may start at once.
const READY_DEADLINE: Duration = Duration::from_secs(90);

/// A control plane with RBAC, reachable from every host on the underlay; goes away with the lab, or when dropped.
#[derive(Debug)]
pub struct ControlPlane {
    host: Host,
    folder: PathBuf,
    api: Api,
    server: Mutex<Option<Process>>,
    controllers: Mutex<Option<Process>>,
    proxy: Process,
    etcd: Process,
}

impl ControlPlane {
    pub(crate) fn start_new(site: &Arc<Site>) -> Result<Self> {
        let host = {
            let _standing = site.standing()?;
            Host::at(site, "control-plane", NUMBER)?
        };
        let folder = host.folder()?;
        let etcd = start_etcd(&host)?;
        write_kubeconfig(&host, "admin", ADMIN_TOKEN)?;
        let proxy = start_proxy(&host)?;
        let plane = Self {
            api: Api::new(host.clone()),
            host,
            folder,
            server: Mutex::new(None),
            controllers: Mutex::new(None),
            proxy,
            etcd,
        };
        plane.start()?;
        Ok(plane)
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The API server's URL, from every host on the underlay.
    pub fn server_url(&self) -> String {
        server_url(&self.host)
    }

    /// etcd's URL (plain HTTP), from every host on the underlay.
    pub fn etcd_url(&self) -> String {
        format!("http://{}", self.host.ipv4_at(ETCD_PORT))
    }

    /// The administrator's kubeconfig, which checks the server's certificate.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// Writes the kubeconfig of a ServiceAccount, which is created when it is not there. It may do what RBAC allows it,
    /// for an hour.
    pub fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let metadata = json!({ "name": name, "namespace": namespace });
        self.apply(json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata }))?;
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
        let answer = self.request("POST", &path, &request)?;
        let token = answer["status"]["token"].as_str().context("a TokenRequest without a token")?;
        write_kubeconfig(&self.host, &format!("{namespace}-{name}"), token)
    }

    /// Applies YAML documents (server-side apply, forced), with their status. A Namespace must come before what is in it.
    pub fn apply(&self, manifests: impl Display) -> Result<()> {
        self.api.apply(&manifests.to_string())
    }

    /// Deletes the objects that YAML documents name; their content does not matter.
    pub fn delete(&self, manifests: impl Display) -> Result<()> {
        self.api.delete(&manifests.to_string())
    }

    /// Reads a path of the API, such as `/api/v1/nodes/node-1`.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.request("GET", path, &Value::Null)
    }

    /// Any request with a JSON body (`Value::Null`: none) and an answer in JSON, as the administrator.
    pub fn request(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let content_type =
            if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        self.api.request(Request { method, path, content_type, body: &body })
    }

    /// A watch, such as `/api/v1/nodes?watch=1`: HTTP as it comes, one event a line among headers and chunk lengths.
    pub fn watch(&self, path: &str) -> Result<std::net::TcpStream> {
        self.api.open(path)
    }

    /// What ServiceAccounts have asked so far, oldest first: the API server's audit events, each when it was answered.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let path = audit_log(&self.folder);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        // The last line may be under way.
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Runs the real `kubectl` as the administrator and returns what it printed. A quarter of a second each.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let kubeconfig = self.kubeconfig();
        self.host.command(reference("kubectl")?).env("KUBECONFIG", kubeconfig).args(arguments).run()
    }

    /// Stops the API server; etcd goes on. Watches and connections end.
    pub fn stop(&self) -> Result<()> {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        // An API server drains its connections for a minute when asked to stop.
        server.context("the API server does not run")?.kill9()?;
        Ok(())
    }

    /// Starts the API server again after [`ControlPlane::stop`], with the same data, and waits until it is ready.
    pub fn start(&self) -> Result<()> {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if server.is_some() {
            bail!("the API server runs already");
        }
        let started = start_server(&self.host)?;
        let ended = within(READY_DEADLINE, "a ready API server", || {
            let ended = [&self.etcd, &self.proxy, &started].into_iter().find(|process| !process.is_running());
            ended.map_or_else(|| self.get("/readyz").map(|_| None), |process| Ok(Some(process.log())))
        })?;
        if let Some(log) = ended {
            bail!("the control plane ended while starting\n{log}");
        }
        *server = Some(started);
        Ok(())
    }

    /// Starts a controller manager that gives every Node podCIDRs from [`POD_CIDRS`], and nothing else.
    pub fn allocate_pod_cidrs(&self) -> Result<()> {
        let mut controllers = self.controllers.lock().unwrap_or_else(PoisonError::into_inner);
        if controllers.is_none() {
            *controllers = Some(start_controllers(&self.host, &self.kubeconfig())?);
        }
        Ok(())
    }
}

fn start_etcd(host: &Host) -> Result<Process> {
    etcd(host, &format!("http://127.0.0.1:{ETCD_PORT},http://{}", host.ipv4_at(ETCD_PORT)))?.start("etcd")
}

/// The API server makes its own certificate, valid for its address; the certificate's key also signs the tokens of
/// ServiceAccounts, so that no other key has to be made.
fn start_server(host: &Host) -> Result<Process> {
    let folder = host.folder()?;
    let tokens = folder.join("tokens.csv");
    let line = format!("{ADMIN_TOKEN},admin,admin,system:masters\n");
    fs::write(&tokens, line).with_context(|| format!("write {}", tokens.display()))?;
    let policy = folder.join("audit-policy.yaml");
    fs::write(&policy, AUDIT_POLICY).with_context(|| format!("write {}", policy.display()))?;
    let key = folder.join("certificates/apiserver.key");
    let command = host.command(reference("kube-apiserver")?).args([
        format!("--etcd-servers=http://127.0.0.1:{ETCD_PORT}"),
        format!("--secure-port={API_PORT}"),
        format!("--advertise-address={}", host.ipv4()),
        format!("--cert-dir={}", folder.join("certificates").display()),
        format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
        "--authorization-mode=RBAC".to_owned(),
        format!("--token-auth-file={}", tokens.display()),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", key.display()),
        format!("--service-account-signing-key-file={}", key.display()),
        "--allow-privileged".to_owned(),
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", audit_log(&folder).display()),
    ]);
    command.start("kube-apiserver")
}

/// Started before the API server has made its certificate, hence without a look at it: both are on one host.
fn start_proxy(host: &Host) -> Result<Process> {
    let command = host.command(reference("kubectl")?).args([
        format!("--server={}", server_url(host)),
        format!("--token={ADMIN_TOKEN}"),
        "--insecure-skip-tls-verify".to_owned(),
        "proxy".to_owned(),
        format!("--port={PROXY_PORT}"),
    ]);
    command.start("kubectl-proxy")
}

fn start_controllers(host: &Host, kubeconfig: &std::path::Path) -> Result<Process> {
    let command = host.command(reference("kube-controller-manager")?).args([
        format!("--kubeconfig={}", kubeconfig.display()),
        "--controllers=node-ipam-controller".to_owned(),
        "--allocate-node-cidrs".to_owned(),
        format!("--cluster-cidr={POD_CIDRS}"),
        format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
        "--leader-elect=false".to_owned(),
    ]);
    command.start("kube-controller-manager")
}

/// Names the certificate that the API server makes when it starts.
fn write_kubeconfig(host: &Host, user: &str, token: &str) -> Result<PathBuf> {
    let folder = host.folder()?;
    let authority = folder.join("certificates/apiserver.crt");
    let cluster = json!({ "server": server_url(host), "certificate-authority": authority });
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "lab", "cluster": cluster }],
        "users": [{ "name": user, "user": { "token": token } }],
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": user } }],
        "current-context": "lab",
    });
    let path = folder.join(format!("{user}.kubeconfig"));
    let yaml = serde_saphyr::to_string(&config).context("write a kubeconfig")?;
    fs::write(&path, yaml).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn audit_log(folder: &std::path::Path) -> PathBuf {
    folder.join("audit.log")
}

fn server_url(host: &Host) -> String {
    let address: SocketAddr = host.ipv4_at(API_PORT);
    format!("https://{address}")
}
