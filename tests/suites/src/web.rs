//! The Service that most tests call.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podway_testkit::{Host, Pod, manifests};

use crate::traffic::{Way, await_answers_by};

/// Where `web` is.
pub const WEB: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x10))];

/// Its port, TCP and UDP.
pub const WEB_PORT: u16 = 80;

/// What its pods listen on.
pub(crate) const TARGET_PORT: u16 = 8080;

/// `web` at [`WEB`].
pub fn web_service() -> manifests::Service {
    manifests::service("web").cluster_ips(WEB).tcp("tcp", WEB_PORT, TARGET_PORT).udp(
        "udp",
        WEB_PORT,
        TARGET_PORT,
    )
}

/// The EndpointSlices of `web` with these pods, all ready.
pub fn web_behind<'pod>(pods: impl IntoIterator<Item = &'pod Pod>) -> manifests::Slices {
    let slices = manifests::slices("web").tcp("tcp", TARGET_PORT).udp("udp", TARGET_PORT);
    pods.into_iter().fold(slices, manifests::Slices::pod)
}

/// Waits until `client` is answered by exactly these pods of `web`, TCP and UDP over both families.
#[track_caller]
pub fn web_answers(client: &Host, names: &[&str]) {
    for way in Way::all(WEB, WEB_PORT) {
        await_answers_by(client, way, names);
    }
}
