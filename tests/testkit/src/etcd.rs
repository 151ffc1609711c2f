//! A real etcd, without an API server: plain or with TLS and client certificates, and with a password on demand.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};

use crate::binaries::reference;
use crate::eventually::within;
use crate::host::Host;
use crate::process::Process;
use crate::site::Site;

/// Where etcd listens for its clients.
pub(crate) const ETCD_PORT: u16 = 2379;

/// Where it listens for the test itself, on loopback and without TLS.
const TEST_PORT: u16 = 2378;

/// Its host is 192.0.2.3 and 2001:db8::3 on every underlay.
const NUMBER: u8 = 3;

/// Ready within half a second on an idle machine with two cores.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// Longer than etcd takes for any single request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An etcd reachable from every host on the underlay; goes away with the lab, or when dropped.
#[derive(Debug)]
pub struct Etcd {
    host: Host,
    tls: Option<EtcdTls>,
    process: Mutex<Option<Process>>,
    token: Mutex<Option<String>>,
}

/// PEM files for etcd's clients.
#[derive(Debug, Clone)]
pub struct EtcdTls {
    /// The authority of etcd's certificate.
    pub ca: PathBuf,
    /// A client's certificate, without which etcd takes no connection.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A key as it stands in etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdKey {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// etcd's number of its lease; 0 is none.
    pub lease: i64,
}

impl Etcd {
    pub(crate) fn start_new(site: &Arc<Site>, with_tls: bool) -> Result<Self> {
        let host = {
            let _standing = site.standing()?;
            Host::at(site, "etcd", NUMBER)?
        };
        let tls = if with_tls { Some(write_certificates(&host)?) } else { None };
        let etcd = Self { host, tls, process: Mutex::new(None), token: Mutex::new(None) };
        etcd.start()?;
        Ok(etcd)
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its URL, from every host on the underlay.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.host.ipv4_at(ETCD_PORT))
    }

    /// What a client needs, if it wants TLS.
    pub fn tls(&self) -> Option<&EtcdTls> {
        self.tls.as_ref()
    }

    /// Starts it again after [`Etcd::stop`], with the same keys, and waits until it answers.
    pub fn start(&self) -> Result<()> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if process.is_some() {
            bail!("etcd runs already");
        }
        let started = self.command()?.start("etcd")?;
        within(READY_DEADLINE, "an etcd that answers", || match self.exchange("GET", "/health", "") {
            Ok((200, _)) => Ok(()),
            Ok((status, body)) => bail!("{status} {body}"),
            Err(error) if started.is_running() => Err(error),
            Err(_) => bail!("etcd has ended\n{}", started.log()),
        })?;
        *process = Some(started);
        Ok(())
    }

    /// Stops it; connections and watches end.
    pub fn stop(&self) -> Result<()> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        process.context("etcd does not run")?.kill9()?;
        Ok(())
    }

    /// The keys that begin with `prefix`, in their order.
    pub fn keys(&self, prefix: &str) -> Result<Vec<EtcdKey>> {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().context("an empty prefix")? += 1;
        let question = json!({ "key": BASE64.encode(prefix), "range_end": BASE64.encode(end) });
        let answer = self.ask("/v3/kv/range", &question)?;
        let keys = answer["kvs"].as_array().map_or(&[][..], Vec::as_slice);
        keys.iter().map(read_key).collect()
    }

    /// One key, if it is there.
    pub fn get(&self, key: &str) -> Result<Option<EtcdKey>> {
        Ok(self.keys(key)?.into_iter().find(|found| found.key == key))
    }

    /// Writes a key without lease.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        self.put_with(key, value, 0)
    }

    /// Writes a key with a new lease.
    pub fn put_leased(&self, key: &str, value: &str, seconds: u32) -> Result<()> {
        let granted = self.ask("/v3/lease/grant", &json!({ "TTL": seconds }))?;
        self.put_with(key, value, number(&granted["ID"]))
    }

    /// Deletes a key.
    pub fn delete(&self, key: &str) -> Result<()> {
        self.ask("/v3/kv/deleterange", &json!({ "key": BASE64.encode(key) })).map(drop)
    }

    /// Ends a lease at once, as if it had run out: the keys that are attached to it go.
    pub fn end_lease(&self, lease: i64) -> Result<()> {
        self.ask("/v3/lease/revoke", &json!({ "ID": lease.to_string() })).map(drop)
    }

    /// The numbers of all leases.
    pub fn leases(&self) -> Result<Vec<i64>> {
        let answer = self.ask("/v3/lease/leases", &json!({}))?;
        let leases = answer["leases"].as_array().map_or(&[][..], Vec::as_slice);
        Ok(leases.iter().map(|lease| number(&lease["ID"])).collect())
    }

    /// The seconds that a lease was granted for.
    pub fn granted_seconds(&self, lease: i64) -> Result<i64> {
        let answer = self.ask("/v3/lease/timetolive", &json!({ "ID": lease.to_string() }))?;
        Ok(number(&answer["grantedTTL"]))
    }

    /// Forgets all that was overwritten or deleted before the latest revision.
    pub fn compact(&self) -> Result<()> {
        let answer = self.ask("/v3/kv/range", &json!({ "key": BASE64.encode("/") }))?;
        let revision = number(&answer["header"]["revision"]).to_string();
        self.ask("/v3/kv/compaction", &json!({ "revision": revision, "physical": true })).map(drop)
    }

    /// Switches authentication on, with one user beside root (password `root`) who may read and write all keys that
    /// begin with `prefix` and nothing else.
    pub fn require_password(&self, user: &str, password: &str, prefix: &str) -> Result<()> {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().context("an empty prefix")? += 1;
        let range =
            json!({ "permType": "READWRITE", "key": BASE64.encode(prefix), "range_end": BASE64.encode(end) });
        for (path, question) in [
            ("user/add", json!({ "name": "root", "password": "root" })),
            ("role/add", json!({ "name": "root" })),
            ("user/grant", json!({ "user": "root", "role": "root" })),
            ("user/add", json!({ "name": user, "password": password })),
            ("role/add", json!({ "name": user })),
            ("role/grant", json!({ "name": user, "perm": range })),
            ("user/grant", json!({ "user": user, "role": user })),
            ("enable", json!({})),
        ] {
            self.ask(&format!("/v3/auth/{path}"), &question)?;
        }
        let root = json!({ "name": "root", "password": "root" });
        let answer = self.ask("/v3/auth/authenticate", &root)?;
        let token = answer["token"].as_str().context("no token")?.to_owned();
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
        Ok(())
    }

    fn put_with(&self, key: &str, value: &str, lease: i64) -> Result<()> {
        let (key, value) = (BASE64.encode(key), BASE64.encode(value));
        self.ask("/v3/kv/put", &json!({ "key": key, "value": value, "lease": lease.to_string() })).map(drop)
    }

    /// Through etcd's JSON gateway, and so by another way than podway's.
    fn ask(&self, path: &str, question: &Value) -> Result<Value> {
        let (status, body) = self.exchange("POST", path, &question.to_string())?;
        if status != 200 {
            bail!("{path}: {status} {body}");
        }
        serde_json::from_str(&body).with_context(|| format!("{path} was answered by {body}"))
    }

    /// HTTP/1.0, so that the answer ends with the connection and is never chunked.
    fn exchange(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let user = token.map_or_else(String::new, |token| format!("Authorization: {token}\r\n"));
        let text = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\n{user}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = self.host.enter(|| -> std::io::Result<String> {
            let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, TEST_PORT))?;
            connection.set_read_timeout(Some(TIMEOUT))?;
            connection.write_all(text.as_bytes())?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let answer = answer.with_context(|| format!("ask etcd for {path}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.context("no HTTP status")?, body.to_owned()))
    }

    fn command(&self) -> Result<crate::Command> {
        let client = format!("{},http://127.0.0.1:{TEST_PORT}", self.url());
        let command = etcd(&self.host, &client)?;
        let Some(tls) = &self.tls else { return Ok(command) };
        let folder = self.host.folder()?;
        Ok(command
            .arg("--client-cert-auth")
            .args([format!("--trusted-ca-file={}", tls.ca.display())])
            .args([format!("--cert-file={}", folder.join("server.crt").display())])
            .args([format!("--key-file={}", folder.join("server.key").display())]))
    }
}

/// An etcd of one member that listens for its clients at these URLs and keeps its keys in the host's folder.
pub(crate) fn etcd(host: &Host, client_urls: &str) -> Result<crate::Command> {
    let command = host.command(reference("etcd")?).arg("--data-dir").arg(host.folder()?.join("etcd"));
    Ok(command.args([
        "--unsafe-no-fsync",
        "--log-level=warn",
        "--listen-peer-urls=http://127.0.0.1:2380",
        &format!("--listen-client-urls={client_urls}"),
        &format!("--advertise-client-urls={client_urls}"),
    ]))
}

fn read_key(kv: &Value) -> Result<EtcdKey> {
    let text = |field: &str| {
        let bytes = BASE64.decode(kv[field].as_str().unwrap_or_default()).context("base64")?;
        String::from_utf8(bytes).context("a key or value that is no text")
    };
    Ok(EtcdKey { key: text("key")?, value: text("value")?, lease: number(&kv["lease"]) })
}

/// The gateway writes 64 bits as text, and leaves out 0.
fn number(value: &Value) -> i64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// An authority, etcd's certificate and a client's, in the host's folder.
fn write_certificates(host: &Host) -> Result<EtcdTls> {
    let folder = host.folder()?;
    let write = |name: &str, text: String| -> Result<PathBuf> {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    };
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate()?;
    let ca = write("ca.crt", authority.self_signed(&authority_key)?.pem())?;
    let issuer = Issuer::new(authority, authority_key);

    let mut server = CertificateParams::new(vec!["localhost".to_owned()])?;
    server.subject_alt_names.extend(host.addresses().iter().copied().map(SanType::IpAddress));
    server.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
    // The gateway is a client of its own server.
    server.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let server_key = KeyPair::generate()?;
    write("server.crt", server.signed_by(&server_key, &issuer)?.pem())?;
    write("server.key", server_key.serialize_pem())?;

    let mut client = CertificateParams::new(Vec::new())?;
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let client_key = KeyPair::generate()?;
    let cert = write("client.crt", client.signed_by(&client_key, &issuer)?.pem())?;
    let key = write("client.key", client_key.serialize_pem())?;
    Ok(EtcdTls { ca, cert, key })
}
