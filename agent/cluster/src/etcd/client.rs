//! Calls to etcd: which endpoint, over which connection, as which user.

use std::error::Error as _;
use std::path::Path;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use http::Uri;
use http::uri::PathAndQuery;
use prost::Message;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::wire::{
    AUTHENTICATE, AuthenticateRequest, AuthenticateResponse, WATCH, WatchCreateRequest, WatchKind,
    WatchRequest, WatchResponse,
};
use crate::{Error, EtcdConfig};

/// etcd itself gives up on its peers after 5 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(6);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// An open watch is silent for hours by right, so the other end is asked. etcd closes connections that ask more often
/// than each 5 s, or without an open stream.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A list of all 65,536 subnets of a /8 has 16 MB.
const LARGEST_ANSWER: usize = 256 << 20;

/// A user of one etcd cluster. Connects when something is called. Not to be printed: it knows a password.
#[derive(Clone)]
pub(super) struct Client {
    config: EtcdConfig,
    members: Vec<Member>,
    /// The one that is called; the next one after a failure.
    current: usize,
    token: Option<MetadataValue<Ascii>>,
}

#[derive(Clone)]
struct Member {
    url: String,
    channel: Channel,
}

impl Client {
    pub(super) fn open(config: &EtcdConfig) -> Result<Self, Error> {
        Ok(Self { config: config.clone(), members: members(config)?, current: 0, token: None })
    }

    /// Calls one member after the other until one answers, each once: for what may be done twice.
    pub(super) async fn call<Q, A>(&mut self, method: &'static str, question: Q) -> Result<A, Error>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let mut tried = 1;
        loop {
            let answer = self.call_as_user(method, question.clone()).await;
            match answer {
                Err(status) if is_absence(&status) && tried < self.members.len() => {
                    self.turn_to_the_next();
                    tried += 1;
                }
                answer => return answer.map_err(|status| self.failed(&status)),
            }
        }
    }

    /// Calls one member, once. A transaction may have been carried out though its answer is lost; repeated at another
    /// member, it would fail by its own doing.
    pub(super) async fn call_once<Q, A>(&mut self, method: &'static str, question: Q) -> Result<A, Error>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.call_as_user(method, question).await.map_err(|status| self.failed(&status))
    }

    /// Begins a watch. It ends with an error when the member loses its connection, to us or to the cluster's leader.
    pub(super) async fn watch(
        &mut self,
        create: WatchCreateRequest,
    ) -> Result<Streaming<WatchResponse>, Error> {
        let opened = match self.open_watch(create.clone()).await {
            Err(status) if self.is_stale_token(&status) => {
                self.token = None;
                self.open_watch(create).await
            }
            opened => opened,
        };
        opened.map_err(|status| self.failed(&status))
    }

    /// The error of a call, and another member next time.
    pub(super) fn failed(&mut self, status: &Status) -> Error {
        let endpoint = self.url();
        if is_absence(status) {
            self.turn_to_the_next();
        }
        Error::Etcd { endpoint, cause: cause(status) }
    }

    /// The member that is called.
    pub(super) fn url(&self) -> String {
        self.members.get(self.current).map_or_else(String::new, |member| member.url.clone())
    }

    /// Certificates may have been renewed since, so they are read again; those that are broken change nothing.
    fn turn_to_the_next(&mut self) {
        if let Ok(members) = members(&self.config) {
            self.members = members;
        }
        self.current = (self.current + 1) % self.members.len().max(1);
    }

    async fn call_as_user<Q, A>(&mut self, method: &'static str, question: Q) -> Result<A, Status>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.authenticate().await?;
        match self.unary(method, question.clone()).await {
            Err(status) if self.is_stale_token(&status) => {
                self.token = None;
                self.authenticate().await?;
                self.unary(method, question).await
            }
            answer => answer,
        }
    }

    /// A token of etcd's own kind lives for five minutes after its last use, and not longer than its member.
    async fn authenticate(&mut self) -> Result<(), Status> {
        if self.config.username.is_empty() || self.token.is_some() {
            return Ok(());
        }
        let (name, password) = (self.config.username.clone(), self.config.password.clone());
        let question = AuthenticateRequest { name, password };
        let answer: AuthenticateResponse = match self.unary(AUTHENTICATE, question).await {
            // As etcd's own client: a user may be configured before etcd asks for one.
            Err(status) if status.message().contains("authentication is not enabled") => return Ok(()),
            answer => answer?,
        };
        let mut token = MetadataValue::try_from(answer.token.as_str())
            .map_err(|_| Status::internal("the token is no ASCII text"))?;
        token.set_sensitive(true);
        self.token = Some(token);
        Ok(())
    }

    fn is_stale_token(&self, status: &Status) -> bool {
        let old = status.code() == Code::InvalidArgument && status.message().contains("auth store is old");
        // Authentication was switched on while we were connected.
        let missing =
            status.code() == Code::InvalidArgument && status.message().contains("user name is empty");
        let stale = status.code() == Code::Unauthenticated || old;
        (stale && self.token.is_some()) || (missing && !self.config.username.is_empty())
    }

    async fn unary<Q, A>(&self, method: &'static str, question: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.grpc()?;
        let call = async {
            grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.unary(self.request(question), PathAndQuery::from_static(method), codec).await
        };
        Ok(timeout(CALL_TIMEOUT, call).await.map_err(|_| no_answer())??.into_inner())
    }

    async fn open_watch(&mut self, create: WatchCreateRequest) -> Result<Streaming<WatchResponse>, Status> {
        self.authenticate().await?;
        let mut grpc = self.grpc()?;
        let create = WatchRequest { request: Some(WatchKind::Create(create)) };
        // The end of what we say would be the end of the watch.
        let mut request = self.request(stream::iter([create]).chain(stream::pending()));
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let call = async {
            grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            grpc.streaming(request, PathAndQuery::from_static(WATCH), codec).await
        };
        Ok(timeout(CALL_TIMEOUT, call).await.map_err(|_| no_answer())??.into_inner())
    }

    fn grpc(&self) -> Result<Grpc<Channel>, Status> {
        let member = self.members.get(self.current).ok_or_else(|| Status::internal("no endpoint"))?;
        Ok(Grpc::new(member.channel.clone()).max_decoding_message_size(LARGEST_ANSWER))
    }

    fn request<Q>(&self, question: Q) -> Request<Q> {
        let mut metadata = MetadataMap::new();
        if let Some(token) = &self.token {
            metadata.insert("token", token.clone());
        }
        Request::from_parts(metadata, tonic::Extensions::new(), question)
    }
}

fn members(config: &EtcdConfig) -> Result<Vec<Member>, Error> {
    let wrong = |field, cause: String| Error::EtcdField { field, cause };
    if config.endpoints.is_empty() {
        return Err(wrong("endpoints", "there is none".to_owned()));
    }
    let tls = tls(config)?;
    let member = |endpoint: &String| {
        let refused = |cause: String| wrong("endpoints", format!("{endpoint:?}: {cause}"));
        let url = url(endpoint, config).map_err(refused)?;
        let mut settings = Endpoint::from_shared(url.clone())
            .map_err(|error| refused(error.to_string()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        if url.starts_with("https:") {
            settings = settings.tls_config(tls.clone()).map_err(|error| {
                let field = if config.cert_file.as_os_str().is_empty() { "caFile" } else { "certFile" };
                wrong(field, chain(&error))
            })?;
        }
        Ok(Member { url, channel: settings.connect_lazy() })
    };
    config.endpoints.iter().map(member).collect()
}

/// `https://192.0.2.1:2379`; without a scheme, TLS if there is a certificate, as etcd's own client has it.
fn url(endpoint: &str, config: &EtcdConfig) -> Result<String, String> {
    let scheme = if config.cert_file.as_os_str().is_empty() { "http" } else { "https" };
    let url = match endpoint.contains("://") {
        true => endpoint.trim_end_matches('/').to_owned(),
        false => format!("{scheme}://{endpoint}"),
    };
    let parsed: Uri = url.parse().map_err(|error| format!("{error}"))?;
    match parsed.scheme_str() {
        Some("http" | "https") if parsed.host().is_some() => Ok(url),
        _ => Err("not a URL such as https://192.0.2.1:2379".to_owned()),
    }
}

fn tls(config: &EtcdConfig) -> Result<ClientTlsConfig, Error> {
    let mut tls = ClientTlsConfig::new();
    tls = match read("caFile", &config.ca_file)? {
        Some(authorities) => tls.ca_certificate(Certificate::from_pem(authorities)),
        None => tls.with_native_roots(),
    };
    let missing = |field, cause: &str| Error::EtcdField { field, cause: cause.to_owned() };
    match (read("certFile", &config.cert_file)?, read("keyFile", &config.key_file)?) {
        (Some(certificate), Some(key)) => Ok(tls.identity(Identity::from_pem(certificate, key))),
        (None, None) => Ok(tls),
        (Some(_), None) => Err(missing("keyFile", "missing, and certFile is of no use without it")),
        (None, Some(_)) => Err(missing("certFile", "missing, and keyFile is of no use without it")),
    }
}

fn read(field: &'static str, path: &Path) -> Result<Option<Vec<u8>>, Error> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let wrong = |cause: String| Error::EtcdField { field, cause: format!("{}: {cause}", path.display()) };
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    match pem.windows(11).any(|text| text == b"-----BEGIN ") {
        true => Ok(Some(pem)),
        false => Err(wrong("not a PEM file".to_owned())),
    }
}

/// Whether the member is away, or has no leader: another one may do better.
fn is_absence(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

fn no_answer() -> Status {
    Status::deadline_exceeded(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))
}

fn cause(status: &Status) -> String {
    match status.source() {
        Some(source) => chain(source),
        None => status.message().to_owned(),
    }
}

/// An error with what is behind it; tonic's own say little.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| (*error).source());
    let mut text = error.to_string();
    for cause in causes.map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n3_an_endpoint_without_scheme_is_tls_if_there_is_a_certificate() {
        let plain = EtcdConfig::default();
        let certified = EtcdConfig { cert_file: "client.crt".into(), ..EtcdConfig::default() };
        for (endpoint, without, with) in [
            ("192.0.2.3:2379", "http://192.0.2.3:2379", "https://192.0.2.3:2379"),
            ("[2001:db8::3]:2379", "http://[2001:db8::3]:2379", "https://[2001:db8::3]:2379"),
            ("http://etcd-1:2379/", "http://etcd-1:2379", "http://etcd-1:2379"),
            ("https://etcd-1:2379", "https://etcd-1:2379", "https://etcd-1:2379"),
        ] {
            assert_eq!(url(endpoint, &plain).as_deref(), Ok(without));
            assert_eq!(url(endpoint, &certified).as_deref(), Ok(with));
        }
        for endpoint in ["", "ftp://192.0.2.3", "http://", "unix:///run/etcd.sock", "two words:2379"] {
            assert!(url(endpoint, &plain).is_err(), "{endpoint}");
        }
    }

    #[test]
    fn n3_an_error_is_told_with_what_is_behind_it_and_nothing_twice() {
        let behind = std::io::Error::other("connection refused");
        let status = Status::from_error(Box::new(std::io::Error::other(behind)));
        assert_eq!(cause(&status), "connection refused");
        assert_eq!(
            cause(&Status::unauthenticated("invalid user ID or password")),
            "invalid user ID or password"
        );
    }
}
