//! The connection to the API server: its settings, and a client that notices when the other end is gone.

use std::env;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use super::contact::{Address, Contact, Observed};
use crate::{Error, KubeConfig};

/// Far above a round trip anywhere on earth, a lost SYN included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A watch may be silent for a minute by right. When nothing came for this long, the kernel asks the other end
/// whether it is still there...
const KEEPALIVE_AFTER: Duration = Duration::from_secs(20);

/// ...and again after each of these...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// ...and gives the connection up when so many were not answered: a server that lost its power is noticed within
/// 35 s.
const KEEPALIVE_PROBES: u32 = 3;

/// A request that the other end does not even acknowledge for this long ends the connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// The connection settings, from the kubeconfig or the pod's environment, with the configured fields over them; and
/// what is known of the address.
pub(super) async fn settings(config: &KubeConfig) -> Result<(Config, Address), Error> {
    let server = config.server.as_deref().map(server_url).transpose()?;
    let mut settings = match (&config.kubeconfig, &server) {
        (Some(path), _) => from_kubeconfig(path).await?,
        (None, Some(server)) => Config::incluster_env().unwrap_or_else(|_| Config::new(server.clone())),
        (None, None) => Config::incluster_env().map_err(|cause| Error::NoServer { cause })?,
    };
    let address = match (&config.kubeconfig, server) {
        (_, Some(server)) => {
            settings.cluster_url = server;
            Address::Own
        }
        (Some(_), None) => Address::Own,
        (None, None) => pod_address(&settings.cluster_url, env::var("KUBERNETES_PORT").ok().as_deref()),
    };
    if let Some(path) = &config.token_file {
        settings.auth_info.token = None;
        settings.auth_info.token_file = Some(readable("tokenFile", path)?);
    }
    if let Some(path) = &config.ca_file {
        readable("caFile", path)?;
        settings.root_cert_file = Some(path.clone());
    }
    settings.accept_invalid_certs |= config.insecure;
    Ok((settings, address))
}

/// A client whose requests are seen by `contact`.
pub(super) fn client(config: Config, contact: Arc<Contact>) -> Result<Client, Error> {
    let server = config.cluster_url.to_string();
    let refused = |cause| Error::Connection { server: server.clone(), cause: Box::new(cause) };
    let connector = config.rustls_https_connector_with_connector(tcp()).map_err(refused)?;
    let wire: legacy::Client<_, Body> = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let stack = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(refused)?)
        .layer(config.extra_headers_layer().map_err(refused)?)
        .map_err(BoxError::from)
        .service(wire);
    Ok(Client::new(Observed::new(stack, contact), config.default_namespace))
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(KEEPALIVE_AFTER));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    tcp
}

async fn from_kubeconfig(path: &Path) -> Result<Config, Error> {
    let refused = |cause| Error::Kubeconfig { path: path.to_owned(), cause: Box::new(cause) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(refused)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(refused)
}

/// What the address in `KUBERNETES_SERVICE_HOST` is. The kubelet writes Service default/kubernetes into that variable
/// and into `KUBERNETES_PORT` (`tcp://10.96.0.1:443`); where only the latter still says so, the pod's owner has put
/// the API server's own address in place of the former.
fn pod_address(server: &Uri, kubernetes_port: Option<&str>) -> Address {
    let service: Option<Uri> = kubernetes_port.and_then(|url| url.parse().ok());
    match service.as_ref().and_then(Uri::host) {
        Some(service) if server.host() != Some(service) => Address::Own,
        _ => Address::Service,
    }
}

fn server_url(text: &str) -> Result<Uri, Error> {
    let is_server = |uri: &Uri| uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https"));
    let uri = text.parse().ok().filter(is_server);
    uri.ok_or_else(|| Error::Server { server: text.to_owned() })
}

/// The path as text, if there is a file to be read.
fn readable(field: &'static str, path: &Path) -> Result<String, Error> {
    let refused = |cause: String| Error::File { field, path: path.to_owned(), cause };
    fs::read(path).map_err(|error| refused(error.to_string()))?;
    path.to_str().map(str::to_owned).ok_or_else(|| refused("the path is not UTF-8".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn s23_the_configured_server_replaces_the_one_of_the_kubeconfig() {
        let folder = crate::test_folder::TestFolder::new("kubeconfig");
        let path = folder.write(
            "config",
            "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: k, user: u}}], \
             clusters: [{name: k, cluster: {server: 'https://10.96.0.1'}}], users: [{name: u, user: {token: t}}]}",
        );
        let config = KubeConfig { kubeconfig: Some(path), ..KubeConfig::default() };
        assert_eq!(settings(&config).await.unwrap().0.cluster_url, "https://10.96.0.1/");
        let config = KubeConfig { server: Some("https://192.0.2.1:6443".to_owned()), ..config };
        let (settings, address) = settings(&config).await.unwrap();
        assert_eq!(
            (settings.cluster_url, address),
            (Uri::from_static("https://192.0.2.1:6443/"), Address::Own)
        );
    }

    #[test]
    fn s23_the_address_in_a_pods_environment_is_the_services_unless_it_was_replaced() {
        let of = |server: &'static str, port| pod_address(&Uri::from_static(server), port);
        assert_eq!(of("https://10.96.0.1", Some("tcp://10.96.0.1:443")), Address::Service);
        assert_eq!(of("https://[fd00::1]:6443", Some("tcp://[fd00::1]:6443")), Address::Service);
        assert_eq!(of("https://10.96.0.1", None), Address::Service);
        assert_eq!(of("https://192.0.2.1:6443", Some("tcp://10.96.0.1:443")), Address::Own);
    }

    #[tokio::test]
    async fn a_printed_chain_says_the_cause_once() {
        let folder = crate::test_folder::TestFolder::new("chain");
        let authorities = folder.write("ca.pem", "no certificate");
        let config = KubeConfig {
            server: Some("https://192.0.2.1".to_owned()),
            ca_file: Some(authorities),
            ..KubeConfig::default()
        };
        let (settings, address) = settings(&config).await.unwrap();
        let contact = Arc::new(Contact::new(&settings.cluster_url, address));
        let Err(connection) = client(settings, contact) else { panic!("took what is no certificate") };
        let kubeconfig = from_kubeconfig(Path::new("/nowhere/config")).await.unwrap_err();
        let no_server = Error::NoServer { cause: Config::incluster_env().unwrap_err() };
        for error in [connection, kubeconfig, no_server] {
            assert!(
                std::error::Error::source(&error).is_none(),
                "{error} would be followed by its cause again"
            );
        }
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_named() {
        let refused = |config: KubeConfig| async move { settings(&config).await.unwrap_err().to_string() };
        let config = KubeConfig { server: Some("192.0.2.1:6443".to_owned()), ..KubeConfig::default() };
        assert_eq!(
            refused(config).await,
            "server \"192.0.2.1:6443\" is not a URL such as https://192.0.2.1:6443"
        );
        let config = KubeConfig { kubeconfig: Some("/nowhere/config".into()), ..KubeConfig::default() };
        assert!(refused(config).await.starts_with("kubeconfig /nowhere/config: "));
        let config = KubeConfig {
            server: Some("https://192.0.2.1".to_owned()),
            token_file: Some("/nowhere/token".into()),
            ..KubeConfig::default()
        };
        assert!(refused(config).await.starts_with("tokenFile /nowhere/token: No such file"));
    }
}
