//! What the probes report about servers that answer, refuse, vanish or stall.

use std::time::Duration;

use podway_testkit::{Failure, Probe, eventually, in_lab};

const MOMENT: Duration = Duration::from_millis(200);

#[test]
fn a_closed_port_refuses_and_a_missing_host_times_out() {
    in_lab("probe-failures", |lab| {
        let (node, client) = (lab.node("node-1")?, lab.outside("client")?);
        for address in [node.ipv4_at(9), node.ipv6_at(9)] {
            for probe in [Probe::tcp(address), Probe::udp(address)] {
                let answers = client.send(probe.count(3))?;
                assert!(answers.all_refused(), "{address}: {answers}");
            }
        }
        let answers = client.send(Probe::tcp("192.0.2.99:80").timeout(MOMENT))?;
        assert!(answers.all_timed_out(), "{answers}");
        node.ip("route add unreachable 198.51.100.0/24")?;
        let answers = node.send(Probe::tcp("198.51.100.1:80"))?;
        assert_eq!(answers.errors(), [(Failure::Unreachable, 1)].into());
        Ok(())
    });
}

#[test]
fn parallel_tries_are_all_counted() {
    in_lab("probe-parallel", |lab| {
        let (node, client) = (lab.node("node-1")?, lab.outside("client")?);
        let _server = node.serve("node-1", 8080)?;
        let answers = client.send(Probe::tcp(node.ipv4_at(8080)).count(500).parallel(8))?;
        assert_eq!((answers.sent(), answers.answered()), (500, 500), "{answers}");
        assert!(answers.p50() > Duration::ZERO && answers.p50() <= answers.slowest());
        Ok(())
    });
}

#[test]
fn an_unconnected_datagram_is_answered_from_the_address_it_was_sent_to() {
    in_lab("probe-unconnected", |lab| {
        let (node, client) = (lab.node("node-1")?, lab.outside("client")?);
        node.ip("addr add 198.51.100.7/32 dev lo\naddr add 2001:db8:7::7/128 dev lo nodad")?;
        client.ip("route add 198.51.100.7 via 192.0.2.11\nroute add 2001:db8:7::7 via 2001:db8::11")?;
        let _server = node.serve("node-1", 53)?;
        for address in ["198.51.100.7:53", "[2001:db8:7::7]:53"] {
            let answers = client.send(Probe::udp(address).unconnected().count(3))?;
            assert!(answers.all_answered(), "{address}: {answers}");
            assert_eq!(answers.remotes(), [address.parse()?].into());
        }
        Ok(())
    });
}

#[test]
fn a_flood_shows_how_long_nobody_answered() {
    in_lab("probe-flood", |lab| {
        let (node, client) = (lab.node("node-1")?, lab.outside("client")?);
        let server = node.serve("first", 8080)?;
        let flood = client.flood(Probe::tcp(node.ipv4_at(8080)).every(Duration::from_millis(5)))?;
        answers_by(&flood, "first");
        server.kill9()?;
        std::thread::sleep(MOMENT);
        let _server = node.serve("second", 8080)?;
        answers_by(&flood, "second");
        let answers = flood.stop()?;
        let expected = [Failure::Refused, Failure::Reset, Failure::Closed];
        assert!(answers.errors().keys().all(|error| expected.contains(error)), "{answers}");
        assert!(answers.longest_gap() >= MOMENT && answers.longest_gap() < 25 * MOMENT, "{answers}");
        Ok(())
    });
}

#[test]
fn a_tcp_stream_survives_a_pause_and_ends_with_its_server() {
    in_lab("probe-stream-tcp", |lab| {
        let (node, client) = (lab.node("node-1")?, lab.outside("client")?);
        let server = node.serve("node-1", 8080)?;
        let patient = Probe::tcp(node.ipv4_at(8080)).timeout(Duration::from_secs(10));
        let stream = client.stream(patient)?;
        answers_by(&stream, "node-1");
        node.unplug()?;
        std::thread::sleep(MOMENT);
        node.plug()?;
        let so_far = stream.answers()?.answered();
        eventually(Duration::from_secs(10), "the stream goes on", || {
            let now = stream.answers().map_err(|error| format!("{error:#}"))?;
            if now.answered() > so_far + 10 { Ok(()) } else { Err(now.to_string()) }
        });
        assert_eq!(stream.answers()?.failures().count(), 0);
        server.kill9()?;
        eventually(Duration::from_secs(5), "the end of the stream", || {
            if stream.is_running() { Err("running") } else { Ok(()) }
        });
        let answers = stream.stop()?;
        assert_eq!(answers.sources(), [client.ipv4()].into());
        Ok(())
    });
}

#[test]
fn a_udp_stream_keeps_its_socket_over_a_restart_of_the_server() {
    in_lab("probe-stream-udp", |lab| {
        let (node, client) = (lab.node("node-1")?, lab.outside("client")?);
        for (port, unconnected) in [(8080, false), (8081, true)] {
            let server = node.serve("first", port)?;
            let probe = Probe::udp(node.ipv6_at(port)).timeout(MOMENT);
            let stream = client.stream(if unconnected { probe.unconnected() } else { probe })?;
            answers_by(&stream, "first");
            server.kill9()?;
            let _server = node.serve("second", port)?;
            answers_by(&stream, "second");
            let answers = stream.stop()?;
            let clients: std::collections::BTreeSet<_> =
                answers.iter().filter_map(|answer| answer.peer).collect();
            assert_eq!(clients.len(), 1, "one socket all the time: {clients:?}");
        }
        Ok(())
    });
}

#[track_caller]
fn answers_by(running: &podway_testkit::Running, name: &str) {
    eventually(Duration::from_secs(5), &format!("an answer by {name}"), || {
        let answers = running.answers().map_err(|error| format!("{error:#}"))?;
        if answers.by_name().contains_key(name) { Ok(()) } else { Err(answers.to_string()) }
    });
}
