//! The Services with their endpoints, and how the kernel holds them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use podway_testkit::Node;

use crate::require;
use crate::screen::Screen;
use crate::shop::{Endpoint, Service};
use crate::stage::Stage;
use crate::words::list;

pub(crate) fn show(stage: &mut Stage<'_>, screen: &Screen) -> Result<()> {
    screen.step(
        "The Services, and who stands behind them",
        "A Service is an address that no machine has; podway has the kernel choose one of its pods for each new \
         connection. Each address and port is one element of a map in nftables, however many Services there are.",
    );
    let services = stage.shop.services()?;
    let endpoints = stage.shop.endpoints()?;
    let rows: Vec<_> = services.iter().flat_map(|service| rows_of(service, &endpoints)).collect();
    screen.table(["SERVICE", "ADDRESS", "PORT", "POD", "ON", "AT"], &rows);
    for node in stage.nodes.values() {
        for service in &services {
            for address in &service.cluster_ips {
                let has_endpoints = behind(service, *address, &endpoints).next().is_some();
                check_element(node, service, *address, has_endpoints)?;
            }
        }
    }
    screen.held(format!(
        "all {} addresses are elements of the kernel's maps on each of the {} nodes",
        services.iter().map(|service| service.cluster_ips.len()).sum::<usize>(),
        stage.nodes.len()
    ));
    Ok(())
}

/// The addresses of a Service beside its pods, as many rows as the longer list needs.
fn rows_of(service: &Service, endpoints: &[Endpoint]) -> Vec<[String; 6]> {
    let mut pods: BTreeMap<(&str, &str), Vec<IpAddr>> = BTreeMap::new();
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.service == service.name) {
        pods.entry((&endpoint.pod, &endpoint.node)).or_default().push(endpoint.address.ip());
    }
    let port = format!("{}/{}", service.port, service.protocol.to_uppercase());
    let mut rows = vec![<[String; 6]>::default(); pods.len().max(service.cluster_ips.len())];
    rows[0][..3].clone_from_slice(&[service.name.clone(), String::new(), port]);
    for (row, address) in rows.iter_mut().zip(&service.cluster_ips) {
        row[1] = address.to_string();
    }
    for (row, ((pod, node), addresses)) in rows.iter_mut().zip(&pods) {
        row[3..].clone_from_slice(&[(*pod).to_owned(), (*node).to_owned(), list(addresses)]);
    }
    if pods.is_empty() {
        rows[0][3] = "none".to_owned();
    }
    rows
}

fn behind<'a>(
    service: &'a Service,
    address: IpAddr,
    endpoints: &'a [Endpoint],
) -> impl Iterator<Item = &'a Endpoint> {
    let is_behind = move |endpoint: &&Endpoint| {
        endpoint.service == service.name && is_same_family(address, endpoint.address)
    };
    endpoints.iter().filter(is_behind)
}

fn is_same_family(address: IpAddr, endpoint: SocketAddr) -> bool {
    address.is_ipv4() == endpoint.is_ipv4()
}

fn check_element(node: &Node, service: &Service, address: IpAddr, has_endpoints: bool) -> Result<()> {
    let family = if address.is_ipv4() { "ip" } else { "ip6" };
    let map = if has_endpoints { "service-ips" } else { "no-endpoints" };
    let element = format!("{{ {address} . {} . {} }}", service.protocol, service.port);
    let asked = node.command("nft").args(["get", "element", family, "podway", map, &element]).output()?;
    require(asked.status.success(), || {
        format!("{}: map {map} of table {family} podway has no {element}\n{}", node.name(), asked.stderr)
    })
}
