//! What others do is noticed at once, what podway does itself is not, and pods come and go unnoticed (contract N13).
//! Needs root.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic")]

mod support;

use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use podway_netlink::{Drift, Followed, Netlink, Watch};
use podway_overlay::{Backend, Overlay, Peering, Settings};
use support::{Namespace, Pair, configured, feed, net, node, overlay};
use tokio::time::timeout;

/// After so long without a notification there is none to come.
const SILENCE: Duration = Duration::from_millis(60);

const NOTHING: Drift = Drift { overlay: false, interfaces: false, host_routes: false, settings: false };
const OVERLAY: Drift = Drift { overlay: true, ..NOTHING };
const INTERFACES: Drift = Drift { interfaces: true, ..NOTHING };
const HOST_ROUTES: Drift = Drift { host_routes: true, ..NOTHING };
const SETTINGS: Drift = Drift { settings: true, ..NOTHING };

#[test]
fn n13_own_requests_are_no_drift() {
    let pair = Pair::new();
    let mut overlay = pair.overlay(1);
    watching(&pair, async |netlink, mut watch| {
        let everything = Duration::from_millis(400);
        reconcile(&netlink, &mut overlay).await;
        assert_eq!(drift_within(&mut watch, everything).await, NOTHING, "from nothing to everything");
        assert_eq!(pair.nodes[0].ip("route show proto 105").lines().count(), 1);

        for peer in [Some(node(3)), Some(moved(3)), None] {
            overlay.apply(&"node-3".into(), peer.as_ref());
            let ops = overlay.changes().unwrap();
            assert!(!ops.is_empty());
            assert_eq!(netlink.run(&ops).await.done, ops.len());
            assert_eq!(drift(&mut watch).await, NOTHING, "{ops:?}");
        }

        pair.nodes[0].ip("link set flannel.1 address 0a:00:00:00:00:01");
        pair.nodes[0].ip("link set flannel.1 mtu 1400");
        assert_eq!(drift(&mut watch).await, OVERLAY);
        reconcile(&netlink, &mut overlay).await;
        assert_eq!(drift(&mut watch).await, NOTHING, "MTU and MAC set back");

        let report = netlink.remove_all().await.unwrap();
        assert!(report.failures.is_empty(), "{report:?}");
        assert_eq!(drift_within(&mut watch, everything).await, NOTHING, "and everything removed");
    });
}

#[test]
fn n13_whatever_somebody_does_to_what_is_ours_is_noticed() {
    each_gives(
        &[
            ("route del 10.244.2.0/24", OVERLAY),
            ("-6 route del fd00:0:0:2::/64", OVERLAY),
            ("route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink mtu 1300 proto 105", OVERLAY),
            (
                "route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink src 192.0.2.1 proto 105",
                OVERLAY,
            ),
            (
                "-6 route change fd00:0:0:2::/64 via fd00:0:0:2:: dev flannel-v6.1 onlink mtu 1300 proto 105",
                OVERLAY,
            ),
            ("neigh del 10.244.2.0 dev flannel.1", OVERLAY),
            ("neigh replace 10.244.2.0 lladdr 0a:00:00:00:00:09 dev flannel.1", OVERLAY),
            ("-6 neigh del fd00:0:0:2:: dev flannel-v6.1", OVERLAY),
            ("addr del 10.244.1.0/32 dev flannel.1", OVERLAY),
            ("addr add 10.244.7.7/32 dev flannel.1", OVERLAY),
            ("-6 addr del fd00:0:0:1::/128 dev flannel-v6.1", OVERLAY),
            ("link set flannel.1 mtu 1300", OVERLAY),
            ("link set flannel.1 address 0a:00:00:00:00:01", OVERLAY),
            ("link set flannel.1 alias theirs", OVERLAY),
            ("link set flannel.1 type vxlan learning", OVERLAY),
            ("link set flannel.1 type vxlan id 1 local 192.0.2.77", OVERLAY),
            ("link add br7 address 02:00:00:00:00:07 type bridge", NOTHING),
            ("link set flannel.1 master br7", OVERLAY),
            ("link set flannel.1 down", OVERLAY),
            ("link del flannel.1", OVERLAY),
            ("link del flannel-v6.1", OVERLAY),
        ],
        Namespace::ip,
    );
}

#[test]
fn n13_a_forwarding_entry_that_somebody_removes_changes_or_adds_is_noticed() {
    let pair = Pair::new();
    let mut overlay = pair.overlay(1);
    watching(&pair, async |netlink, mut watch| {
        reconcile(&netlink, &mut overlay).await;
        assert_eq!(drift(&mut watch).await, NOTHING);
        let shown = pair.nodes[0].bridge("fdb show dev flannel.1");
        let mac = shown.split_whitespace().next().unwrap().to_owned();
        let before = state(&pair.nodes[0]);
        for words in [
            format!("fdb del {mac} dev flannel.1 dst 192.0.2.2 self"),
            format!("fdb replace {mac} dev flannel.1 dst 192.0.2.77 self permanent"),
            "fdb add 0a:00:00:00:00:09 dev flannel.1 dst 192.0.2.9 self permanent".to_owned(),
        ] {
            pair.nodes[0].bridge(&words);
            assert_eq!(drift(&mut watch).await, OVERLAY, "{words}");
            reconcile(&netlink, &mut overlay).await;
            assert_eq!(drift(&mut watch).await, NOTHING, "{words}: repaired");
            assert_eq!(state(&pair.nodes[0]), before, "{words}: repaired");
        }
    });
}

#[test]
fn n13_forwarding_entries_that_a_learning_link_forgets_are_nobodys_doing() {
    let pair = Pair::new();
    let host = &pair.nodes[0];
    let networks = vec![net("10.244.0.0/16"), net("fd00::/48")];
    let settings = Settings { learning: true, ..Settings::new("node-1", networks, Peering::Derived) };
    let mut overlay = configured(host, settings);
    watching(&pair, async |netlink, mut watch| {
        reconcile(&netlink, &mut overlay).await;
        assert_eq!(drift_within(&mut watch, SILENCE * 4).await, NOTHING);
        host.bridge("fdb add 0a:00:00:00:00:09 dev flannel.1 dst 192.0.2.9 self dynamic");
        host.bridge("fdb del 0a:00:00:00:00:09 dev flannel.1 dst 192.0.2.9 self");
        assert_eq!(drift(&mut watch).await, NOTHING);
    });
}

#[test]
fn n13_a_link_of_ours_that_somebody_makes_again_is_noticed() {
    let pair = Pair::new();
    let mut overlay = pair.overlay(1);
    watching(&pair, async |netlink, mut watch| {
        reconcile(&netlink, &mut overlay).await;
        assert_eq!(drift(&mut watch).await, NOTHING);
        pair.nodes[0].ip_batch(
            "link del flannel.1\n\
             link add flannel.1 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning\n",
        );
        assert_eq!(drift(&mut watch).await, OVERLAY);
    });
}

#[test]
fn n7_n8_changes_of_the_machines_own_interfaces_are_noticed() {
    let lost = Drift { interfaces: true, host_routes: true, overlay: true, settings: false };
    each_gives(
        &[
            ("link set eth0 mtu 1400", INTERFACES),
            ("addr add 198.51.100.1/32 dev eth0", INTERFACES),
            ("addr del 198.51.100.1/32 dev eth0", lost),
            ("addr add 198.51.100.1/24 dev eth0", Drift { host_routes: true, ..INTERFACES }),
            ("-6 addr add 2001:db8:9::1/128 dev eth0 nodad", Drift { host_routes: true, ..INTERFACES }),
            ("link set eth0 down", lost),
            ("link set eth0 up", Drift { interfaces: true, host_routes: true, ..NOTHING }),
        ],
        Namespace::ip,
    );
}

#[test]
fn n13_direct_routes_are_back_after_the_interface_flaps_within_one_burst() {
    for backend in [Backend::HostGw, Backend::Vxlan] {
        let pair = Pair::new();
        let host = &pair.nodes[0];
        // IPv6 has its addresses taken with the link, and nobody gives them back.
        let networks = vec![net("10.244.0.0/16")];
        let settings = Settings {
            backend,
            direct_routing: backend == Backend::Vxlan,
            ..Settings::new("node-1", networks, Peering::Derived)
        };
        let mut overlay = configured(host, settings);
        watching(&pair, async |netlink, mut watch| {
            reconcile(&netlink, &mut overlay).await;
            assert_eq!(drift_within(&mut watch, SILENCE * 4).await, NOTHING);
            let before = host.ip("-4 route");
            assert!(before.contains("10.244.2.0/24 via 192.0.2.2 dev eth0 proto 105"), "{before}");
            for round in 0..4 {
                for flap in [
                    "link set eth0 down\nlink set eth0 up\n",
                    "addr del 192.0.2.1/24 dev eth0\naddr add 192.0.2.1/24 dev eth0\n",
                ] {
                    host.ip_batch(flap);
                    assert!(!host.ip("-4 route").contains("proto 105"), "the kernel drops the routes");
                    let noticed = drift(&mut watch).await;
                    assert!(noticed.overlay && noticed.host_routes, "round {round}, {flap}: {noticed:?}");
                    reconcile(&netlink, &mut overlay).await;
                    assert_eq!(host.ip("-4 route"), before, "round {round}, {flap}");
                    assert_eq!(drift(&mut watch).await, NOTHING, "round {round}, {flap}: repaired");
                }
            }
        });
    }
}

#[test]
fn n6_changes_of_the_machines_own_routes_are_noticed() {
    each_gives(
        &[
            ("route add default via 192.0.2.254", HOST_ROUTES),
            ("route change default via 192.0.2.253", HOST_ROUTES),
            ("route del default", HOST_ROUTES),
            ("-6 route add default via 2001:db8::fe", HOST_ROUTES),
            ("route add 203.0.113.7/32 dev eth0", HOST_ROUTES),
            ("route add 10.0.0.0/8 via 192.0.2.254", HOST_ROUTES),
            ("route add blackhole 10.244.9.0/24", Drift { host_routes: true, ..OVERLAY }),
            ("route del blackhole 10.244.9.0/24", Drift { host_routes: true, ..OVERLAY }),
        ],
        Namespace::ip,
    );
}

#[test]
fn n19_switched_off_forwarding_and_strict_filtering_are_noticed() {
    fn set(namespace: &Namespace, setting: &str) -> String {
        let (path, value) = setting.split_once('=').unwrap();
        namespace.inside(|| std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap());
        String::new()
    }
    each_gives(
        &[
            ("ipv4/ip_forward=0", SETTINGS),
            ("ipv4/ip_forward=1", NOTHING),
            ("ipv6/conf/all/forwarding=0", SETTINGS),
            ("ipv6/conf/all/forwarding=1", NOTHING),
            ("ipv4/conf/eth0/forwarding=0", SETTINGS),
            ("ipv4/conf/flannel.1/forwarding=0", SETTINGS),
            ("ipv6/conf/eth0/forwarding=0", SETTINGS),
            ("ipv6/conf/flannel-v6.1/forwarding=0", SETTINGS),
            ("ipv4/conf/all/rp_filter=1", SETTINGS),
            ("ipv4/conf/all/rp_filter=2", NOTHING),
            ("ipv4/conf/flannel.1/rp_filter=1", SETTINGS),
        ],
        set,
    );
}

#[test]
fn n19_settings_of_a_family_without_pods_and_the_greeting_of_a_new_link_are_nobodys_doing() {
    let pair = Pair::new();
    let host = &pair.nodes[0];
    let mut overlay = overlay(host, 1, &["10.244.0.0/16"]);
    let followed =
        Followed { links: overlay.link_names(), pod_networks: vec![net("10.244.0.0/16"), net("fd00::/48")] };
    let v4_only = Followed { pod_networks: vec![net("10.244.0.0/16")], ..followed.clone() };
    host.netlink(|netlink| async move {
        let mut watch = Watch::open(&netlink, followed).await.unwrap();
        reconcile(&netlink, &mut overlay).await;
        assert_eq!(drift_within(&mut watch, SILENCE * 4).await, NOTHING, "the kernel greets flannel.1");
        watch.follow(v4_only);
        for value in ["1", "0"] {
            host.inside(|| std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", value).unwrap());
            assert_eq!(drift(&mut watch).await, NOTHING);
        }
    });
}

#[test]
fn n13_pods_come_and_go_unnoticed() {
    let pair = Pair::new();
    let mut overlay = pair.overlay(1);
    watching(&pair, async |netlink, mut watch| {
        reconcile(&netlink, &mut overlay).await;
        assert_eq!(drift(&mut watch).await, NOTHING);
        let host = &pair.nodes[0];
        let pod = Namespace::new("pod");
        for round in 0..3 {
            host.veth("vethabc", &pod, "eth0");
            pod.ip("addr add 10.244.1.9/32 dev eth0");
            pod.ip("-6 addr add fd00:0:0:1::9/128 dev eth0 nodad");
            host.ip("link set vethabc mtu 1450");
            host.ip("addr add 10.244.1.1/32 dev vethabc");
            host.ip("addr add 169.254.1.1/32 dev vethabc");
            host.ip("route add 10.244.1.9/32 dev vethabc");
            host.ip("-6 route add fd00:0:0:1::9/128 dev vethabc");
            host.ip("neigh add 10.244.1.9 lladdr 0a:00:00:00:00:09 dev vethabc");
            host.ip("link set vethabc down");
            host.ip("link set vethabc up");
            assert_eq!(drift_within(&mut watch, SILENCE * 4).await, NOTHING, "round {round}: it came");
            pod.ip("link del eth0");
            assert_eq!(drift(&mut watch).await, NOTHING, "round {round}: it went");
        }
    });
}

#[test]
fn n13_pods_of_a_bridge_come_and_go_unnoticed() {
    let pair = Pair::new();
    let mut overlay = pair.overlay(1);
    let host = &pair.nodes[0];
    host.ip("link add cni0 type bridge");
    host.ip("link set cni0 up");
    host.ip("addr add 10.244.1.1/24 dev cni0");
    watching(&pair, async |netlink, mut watch| {
        reconcile(&netlink, &mut overlay).await;
        assert_eq!(drift(&mut watch).await, NOTHING);
        let pod = Namespace::new("pod");
        host.veth("vethabc", &pod, "eth0");
        host.ip("link set vethabc master cni0");
        pod.ip("addr add 10.244.1.9/24 dev eth0");
        host.ip("neigh add 10.244.1.9 lladdr 0a:00:00:00:00:09 dev cni0");
        assert_eq!(drift_within(&mut watch, SILENCE * 4).await, NOTHING, "it came");
        pod.ip("link del eth0");
        assert_eq!(drift(&mut watch).await, NOTHING, "it went");
    });
}

#[test]
fn n13_what_happens_between_opening_and_asking_is_not_lost() {
    let pair = Pair::new();
    let mut overlay = pair.overlay(1);
    pair.nodes[0].reconcile(&mut overlay);
    watching(&pair, async |_, mut watch| {
        pair.nodes[0].ip("link set flannel.1 down");
        assert_eq!(drift(&mut watch).await, OVERLAY);
    });
}

#[test]
fn n13_thousands_of_deletions_are_a_few_reports_and_none_is_lost() {
    let pair = Pair::new();
    let mut overlay = pair.overlay(1);
    let count = || pair.nodes[0].ip("route show proto 105").lines().count();
    watching(&pair, async |netlink, mut watch| {
        reconcile(&netlink, &mut overlay).await;
        pair.nodes[0].ip_batch(&routes("add"));
        assert_eq!(drift_within(&mut watch, SILENCE * 4).await, OVERLAY);
        assert_eq!(count(), ROUTES + 1);

        let (mut reports, mut left) = (0, usize::MAX);
        let batch = pair.nodes[0].batch();
        let deleting = thread::spawn(move || feed(batch, &routes("del")));
        while let Ok(drift) = timeout(SILENCE * 4, watch.next()).await {
            assert_eq!(drift, OVERLAY);
            (reports, left) = (reports + 1, count());
        }
        deleting.join().unwrap();
        assert_eq!(left, 1, "a look after the last report shows all of it");
        assert!((1..=40).contains(&reports), "{reports} reports");
    });
}

#[test]
fn n13_lost_notifications_mean_that_everything_may_have_changed() {
    let pair = Pair::new();
    let mut overlay = pair.overlay(1);
    watching(&pair, async |netlink, mut watch| {
        reconcile(&netlink, &mut overlay).await;
        assert_eq!(drift(&mut watch).await, NOTHING);
        for _ in 0..8 {
            pair.nodes[0].ip_batch(&routes("add"));
            pair.nodes[0].ip_batch(&routes("del"));
        }
        pair.nodes[0].ip("link set flannel.1 down");
        assert_eq!(watch.next().await, Drift::EVERYTHING);
        assert_eq!(drift(&mut watch).await, NOTHING, "reported once");
        reconcile(&netlink, &mut overlay).await;
        assert_eq!(drift(&mut watch).await, NOTHING, "what was missed is known again");
        pair.nodes[0].ip("link set flannel.1 down");
        assert_eq!(drift(&mut watch).await, OVERLAY);
    });
}

const ROUTES: usize = 5000;

fn routes(verb: &str) -> String {
    (0..ROUTES).fold(String::new(), |mut lines, n| {
        let (high, low) = (n / 256, n % 256);
        writeln!(lines, "route {verb} 100.{high}.{low}.0/24 dev eth0 proto 105").unwrap();
        lines
    })
}

/// Node 1 reconciles, then each of the changes by somebody else gives its drift and no other.
fn each_gives(changes: &[(&str, Drift)], make: fn(&Namespace, &str) -> String) {
    let pair = Pair::new();
    let mut overlay = pair.overlay(1);
    watching(&pair, async |netlink, mut watch| {
        reconcile(&netlink, &mut overlay).await;
        assert_eq!(drift_within(&mut watch, SILENCE * 4).await, NOTHING);
        for (words, expected) in changes {
            let before = (state(&pair.nodes[0]), forwarding(&pair.nodes[0]));
            make(&pair.nodes[0], words);
            assert_eq!(drift(&mut watch).await, *expected, "{words}");
            if expected.overlay || expected.settings {
                reconcile(&netlink, &mut overlay).await;
                assert_eq!(drift(&mut watch).await, NOTHING, "{words}: repaired");
            }
            // What becomes of the machine's own interfaces and routes is the machine's affair.
            if (expected.overlay || expected.settings) && !expected.interfaces && !expected.host_routes {
                assert_eq!((state(&pair.nodes[0]), forwarding(&pair.nodes[0])), before, "{words}: repaired");
            }
        }
    });
}

/// All that the namespace has, save for the numbers of links, and for IPv6's link-local addresses, which take their time.
fn state(namespace: &Namespace) -> Vec<String> {
    let everything = namespace.everything();
    let unnumbered = |line: &str| {
        let number = line.split_once(": ").filter(|(number, _)| number.parse::<u32>().is_ok());
        number.map_or(line, |(_, rest)| rest).to_owned()
    };
    let mut lines: Vec<String> =
        everything.lines().filter(|line| !line.contains("fe80:")).map(unnumbered).collect();
    lines.sort();
    lines
}

/// Whether packets are forwarded, by family and link.
fn forwarding(namespace: &Namespace) -> Vec<String> {
    let of = |link: &str| [format!("ipv4/conf/{link}/forwarding"), format!("ipv6/conf/{link}/forwarding")];
    let paths = ["all", "eth0", "flannel.1", "flannel-v6.1"].into_iter().flat_map(of);
    let read = |path: String| std::fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap() + &path;
    namespace.inside(|| paths.map(read).collect())
}

/// Runs `job` in node 1 with a socket and a watch that follows its pod network.
fn watching(pair: &Pair, job: impl AsyncFnOnce(Netlink, Watch) + Send) {
    let links = pair.overlay(1).link_names();
    let followed = Followed { links, pod_networks: vec![net("10.244.0.0/16"), net("fd00::/48")] };
    pair.nodes[0].netlink(|netlink| async move {
        let watch = Watch::open(&netlink, followed).await.unwrap();
        job(netlink, watch).await;
    });
}

async fn reconcile(netlink: &Netlink, overlay: &mut Overlay) {
    let ops = overlay.reconcile(&netlink.observe(&overlay.sought()).await.unwrap());
    let report = netlink.run(&ops).await;
    assert_eq!(report.done, ops.len(), "{report:#?}");
}

async fn drift(watch: &mut Watch) -> Drift {
    drift_within(watch, SILENCE).await
}

/// All that is reported until nothing has been for so long.
async fn drift_within(watch: &mut Watch, silence: Duration) -> Drift {
    let mut all = NOTHING;
    while let Ok(drift) = timeout(silence, watch.next()).await {
        all |= drift;
    }
    all
}

fn moved(n: u8) -> podway_overlay::Node {
    let mut node = node(n);
    node.addresses[0] = "192.0.2.33".parse().unwrap();
    node.pod_cidrs[0] = net("10.244.33.0/24");
    node
}
