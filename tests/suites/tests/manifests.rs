//! manifests/podway.yaml as users apply it: a real API server takes it, and its DaemonSet, run as a container runtime
//! would run it, makes a network of two nodes that have neither a CNI plugin nor kube-proxy.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use ipnet::IpNet;
use podway_suites::{SOON, Way, await_answers, complaints, netns};
use podway_testkit::{
    Command, ControlPlane, Host, Lab, Node, Process, binary, eventually, in_lab, manifests, reference, within,
};
use serde_json::{Value, json};

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/podway.yaml");

const README: &str = include_str!("../../../README.md");
const FLANNEL: &str = include_str!("../../../docs/flannel.md");

/// Where a pod finds its ServiceAccount.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Asks the API server for its health at its Service's address; it lets anybody.
const API_SERVER: [&str; 5] = ["curl", "-sk", "-m", "2", "https://10.96.0.1:443/livez"];

/// podway waits ten seconds for somebody else to assign subnets.
const ASSIGNED: Duration = Duration::from_secs(60);

#[test]
fn x1_x2_one_kubectl_apply_installs_everything_and_a_second_one_changes_nothing() {
    in_lab("manifests-apply", |lab| {
        let plane = lab.control_plane()?;
        let objects = documents()?.len();
        // Nothing can be tried in a namespace that is only tried.
        let documents = documents()?;
        let namespace = documents.iter().find(|document| document["kind"] == "Namespace");
        plane.apply(namespace.context("no namespace")?)?;
        let applied = plane.kubectl(&["apply", "--dry-run=server", "-f", MANIFEST])?;
        assert_eq!(
            applied.lines().filter(|line| line.ends_with("created (server dry run)")).count(),
            objects - 1,
            "{applied}"
        );
        assert!(plane.get("/apis/apps/v1/namespaces/kube-system/daemonsets/podway").is_err(), "only tried");

        plane.kubectl(&["apply", "-f", MANIFEST])?;
        let again = plane.kubectl(&["apply", "-f", MANIFEST])?;
        assert_eq!(again.lines().filter(|line| line.ends_with(" unchanged")).count(), objects, "{again}");
        let server_side = plane.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", MANIFEST])?;
        assert_eq!(server_side.lines().count(), objects, "{server_side}");
        let daemon_set = plane.get("/apis/apps/v1/namespaces/kube-system/daemonsets/podway")?;
        assert_eq!(daemon_set["spec"]["template"]["spec"]["hostNetwork"], true);
        Ok(())
    });
}

#[test]
fn x2_what_the_documents_say_to_set_for_kind_k3s_kubeadm_and_flannel_is_a_configuration() -> Result<()> {
    let manifest = fs::read_to_string(MANIFEST)?;
    let mut recipes = 0;
    for line in README.lines().filter(|line| line.starts_with("sed ")) {
        let script = line.split(['\'', '"']).nth(1).context("no script")?;
        let mut edited = manifest.clone();
        for edit in script.split("; ") {
            let parts: Vec<&str> = edit.trim_matches('#').split('#').collect();
            let ["s", from, to] = parts[..] else { bail!("{edit} is no s#FROM#TO#") };
            assert_eq!(edited.matches(from).count(), 1, "{from} is there once");
            edited = edited.replace(from, &to.replace("$server", "https://192.0.2.1:6443"));
        }
        let documents: Vec<Value> = serde_saphyr::from_multiple(&edited)?;
        let map =
            documents.iter().find(|document| document["kind"] == "ConfigMap").context("no ConfigMap")?;
        let config = map["data"]["config.yaml"].as_str().context("no configuration")?;
        assert!(config.contains("server: https://"), "{config}");
        accepted(config)?;
        recipes += 1;
    }
    assert_eq!(recipes, 3);
    let (_, beside_flannel) = FLANNEL.split_once("```yaml\n").context("no YAML in docs/flannel.md")?;
    accepted(beside_flannel.split_once("```").context("no end")?.0)
}

#[test]
fn x1_s42_the_daemonset_as_a_container_runs_both_halves_and_asks_only_what_it_may() {
    in_lab("manifests-run", |lab| {
        let cluster = Cluster::apply(lab)?;
        let [one, two] = [cluster.node("node-1")?, cluster.node("node-2")?];
        let conflist = one.on_host("/etc/cni/net.d/10-podway.conflist")?;
        assert!(!conflist.exists());
        // As some firewalls and plugins leave it: podway looks whether it drops pods' packets.
        one.node.command("iptables-legacy").args(["-S", "FORWARD"]).run()?;
        let podways = [one.start()?, two.start()?];
        for (member, podway) in [(&one, &podways[0]), (&two, &podways[1])] {
            within(ASSIGNED, "the readiness probe succeeds", || member.probe("readinessProbe", podway))?;
            member.probe("livenessProbe", podway)?;
            member.probe("startupProbe", podway)?;
        }
        let nodes = [cluster.announced("node-1"), cluster.announced("node-2")];
        assert_ne!(subnet(&nodes[0])?, subnet(&nodes[1])?);
        await_answer(&one.node, &API_SERVER, "ok");
        one.await_route_to(&subnet(&nodes[1])?);

        within(SOON, "the conflist is written", || written(&conflist).map(drop))?;
        for earlier in ["/run/flannel/subnet.env", "/opt/cni/bin/podway"] {
            assert!(written(&one.on_host(earlier)?)? <= written(&conflist)?, "{earlier} comes first");
        }
        let pods = [one.attach("pod-1")?, two.attach("pod-2")?];
        let _server = pods[1].0.serve("pod-2", 8080)?;
        for way in Way::all([pods[1].1], 8080) {
            let answers = await_answers(&pods[0].0, way);
            assert_eq!(answers.sources(), [pods[0].1].into(), "across the nodes, as it is");
        }
        await_answer(&pods[1].0, &API_SERVER, "ok");
        let log = podways[0].log();
        assert_eq!(complaints(&log), Vec::<&str>::new(), "{log}");

        // What is held is renewed by the next one.
        podways[0].stop()?;
        let again = one.start()?;
        within(ASSIGNED, "it is ready again", || one.probe("readinessProbe", &again))?;
        cluster.assert_rights_are_used()
    });
}

#[test]
fn x1_n19_a_node_that_does_not_forward_is_named_by_a_container_that_may_not_change_it() {
    in_lab("manifests-forward", |lab| {
        let cluster = Cluster::apply(lab)?;
        let one = cluster.node("node-1")?;
        one.node.sysctl("net.ipv4.ip_forward", "0")?;
        let podway = one.start()?;
        podway
            .wait_for_log("cannot set /proc/sys/net/ipv4/ip_forward to 1: Read-only file system", ASSIGNED)?;
        one.node.sysctl("net.ipv4.ip_forward", "1")?;
        within(SOON, "it goes on by itself", || one.probe("readinessProbe", &podway))
    });
}

/// An API server to which the manifest has been applied, with what a lab must change.
struct Cluster<'lab> {
    lab: &'lab Lab,
    plane: ControlPlane,
}

/// A node whose folder stands for the files of a host.
struct Member {
    node: Node,
    template: Value,
    config: String,
}

impl<'lab> Cluster<'lab> {
    fn apply(lab: &'lab Lab) -> Result<Self> {
        let plane = lab.control_plane()?;
        plane.kubectl(&["apply", "-f", MANIFEST])?;
        Ok(Self { lab, plane })
    }

    /// A node as the kubelet registers it, with what the kubelet hands to a pod of the DaemonSet.
    fn node(&self, name: &str) -> Result<Member> {
        let node = self.lab.node(name)?;
        node.sysctl("net.ipv4.ip_forward", "1")?;
        self.plane.apply(manifests::node(name).internal_ips([node.ipv4()]))?;
        let daemon_set = self.plane.get("/apis/apps/v1/namespaces/kube-system/daemonsets/podway")?;
        let config = self.plane.get("/api/v1/namespaces/kube-system/configmaps/podway")?;
        let config = config["data"]["config.yaml"].as_str().context("no configuration")?;
        assert!(config.contains("server: null"), "where users put the address: {config}");
        let config = config.replace("server: null", &format!("server: {}", self.plane.server_url()));
        let member = Member { node, template: daemon_set["spec"]["template"]["spec"].clone(), config };
        write(&member.on_host("/etc/machine-id")?, name)?;
        let plugins = member.on_host("/opt/cni/bin")?;
        fs::create_dir_all(&plugins)?;
        fs::copy(reference("portmap")?, plugins.join("portmap"))?;
        self.account(&member)?;
        Ok(member)
    }

    /// Token and authority of the ServiceAccount, which RBAC holds to its rights.
    fn account(&self, member: &Member) -> Result<()> {
        let kubeconfig = self.plane.service_account_kubeconfig("kube-system", "podway")?;
        let kubeconfig: Value = serde_saphyr::from_str(&fs::read_to_string(kubeconfig)?)?;
        let token = kubeconfig["users"][0]["user"]["token"].as_str().context("no token")?;
        let authority = kubeconfig["clusters"][0]["cluster"]["certificate-authority"].as_str();
        let authority = fs::read_to_string(authority.context("no authority")?)?;
        for (file, text) in [("token", token), ("ca.crt", &*authority), ("namespace", "kube-system")] {
            write(&member.on_host(ACCOUNT)?.join(file), text)?;
        }
        Ok(())
    }

    /// The Node, once podway has given it a subnet and told that its network works.
    #[track_caller]
    fn announced(&self, name: &str) -> Value {
        eventually(SOON, &format!("{name} is announced"), || {
            let node =
                self.plane.get(&format!("/api/v1/nodes/{name}")).map_err(|error| format!("{error:#}"))?;
            let conditions = node["status"]["conditions"].as_array();
            let works = conditions
                .into_iter()
                .flatten()
                .any(|condition| condition["type"] == "NetworkUnavailable" && condition["status"] == "False");
            let annotated = node["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"].is_string();
            if works && annotated && subnet(&node).is_ok() { Ok(node) } else { Err(node.to_string()) }
        })
    }

    /// Nothing was refused, and every right was of use but for those that need an occasion.
    fn assert_rights_are_used(&self) -> Result<()> {
        let events = self.plane.audit()?;
        let refused = events.iter().filter(|event| event["responseStatus"]["code"] == 403);
        assert_eq!(refused.collect::<Vec<_>>(), Vec::<&Value>::new());
        let used: BTreeSet<Right> = events.iter().map(Right::of_event).collect();
        let granted = granted()?;
        let unused: Vec<&Right> = granted.difference(&used).collect();
        let idle: Vec<_> = unused.iter().filter(|right| !NEED_AN_OCCASION.contains(&&*right.0)).collect();
        assert!(idle.is_empty(), "granted and of no use: {idle:?}");
        assert_eq!(
            used.difference(&granted).collect::<Vec<_>>(),
            Vec::<&Right>::new(),
            "used by other means"
        );
        Ok(())
    }
}

/// What two nodes that come up and one that restarts may do without.
const NEED_AN_OCCASION: [&str; 6] = [
    // An API server that does not stream lists.
    "discovery.k8s.io/endpointslices list",
    "networking.k8s.io/servicecidrs list",
    "services list",
    // Something to tell of, and once more.
    "events.k8s.io/events create",
    "events.k8s.io/events patch",
    // Two nodes that want one subnet.
    "podway-subnets:coordination.k8s.io/leases delete",
];

/// A verb on a kind of object; ordered as it is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right(String);

impl Right {
    fn new(namespace: &str, group: &str, resource: &str, verb: &str) -> Self {
        let namespace = if namespace.is_empty() { String::new() } else { format!("{namespace}:") };
        let group = if group.is_empty() { String::new() } else { format!("{group}/") };
        Self(format!("{namespace}{group}{resource} {verb}"))
    }

    fn of_event(event: &Value) -> Self {
        let text = |name: &str| event["objectRef"][name].as_str().unwrap_or_default();
        let resource = match text("subresource") {
            "" => text("resource").to_owned(),
            part => format!("{}/{part}", text("resource")),
        };
        let group = text("apiGroup");
        // Events are written wherever their object is.
        let namespace = if group == "coordination.k8s.io" { text("namespace") } else { "" };
        Self::new(namespace, group, &resource, event["verb"].as_str().unwrap_or_default())
    }
}

/// Every right in the manifest.
fn granted() -> Result<BTreeSet<Right>> {
    let words = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|word| Some(word.as_str()?.to_owned())).collect()
    };
    let mut rights = BTreeSet::new();
    for role in documents()?.iter().filter(|document| document["rules"].is_array()) {
        let namespace = role["metadata"]["namespace"].as_str().unwrap_or_default();
        for rule in role["rules"].as_array().into_iter().flatten() {
            for group in words(&rule["apiGroups"]) {
                for resource in words(&rule["resources"]) {
                    let verbs = words(&rule["verbs"]);
                    rights.extend(verbs.iter().map(|verb| Right::new(namespace, &group, &resource, verb)));
                }
            }
        }
    }
    Ok(rights)
}

impl Member {
    /// A file of the host.
    fn on_host(&self, path: &str) -> Result<PathBuf> {
        Ok(self.node.folder()?.join("host").join(path.trim_start_matches('/')))
    }

    /// The container of the DaemonSet: its arguments, variables, mounts, capabilities and read-only root.
    fn start(&self) -> Result<Process> {
        let container = &self.template["containers"][0];
        let security = &container["securityContext"];
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
        for (field, expected) in
            [("privileged", false), ("allowPrivilegeEscalation", false), ("readOnlyRootFilesystem", true)]
        {
            assert_eq!(security[field], expected, "{field}");
        }
        let capabilities: Vec<String> = strings(&security["capabilities"]["add"])
            .map(|name| format!("+{}", name.to_lowercase()))
            .collect();
        let capabilities = format!("-all,{}", capabilities.join(","));
        let program = binary("podway")?;
        let contained =
            Contained { name: "podway", program, capabilities: &capabilities, mounts: self.mounts()? };
        let mut command = self.contain(contained)?;
        for variable in container["env"].as_array().into_iter().flatten() {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("spec.nodeName") => self.node.name(),
                other => bail!("a variable from {other:?}"),
            };
            command = command.env(variable["name"].as_str().context("a variable without a name")?, value);
        }
        // What the kubelet sets for every pod.
        let command =
            command.env("KUBERNETES_SERVICE_HOST", "10.96.0.1").env("KUBERNETES_SERVICE_PORT", "443");
        command
            .env("KUBERNETES_PORT", "tcp://10.96.0.1:443")
            .args(strings(&container["args"]))
            .start("podway")
    }

    /// `SOURCE TARGET ro|rw`, a line for each mount of the container.
    fn mounts(&self) -> Result<String> {
        write(&self.on_host("/configmap/config.yaml")?, &self.config)?;
        let mut lines = format!("{} {ACCOUNT} ro\n", self.on_host(ACCOUNT)?.display());
        for mount in self.template["containers"][0]["volumeMounts"].as_array().context("no mounts")? {
            let volumes = self.template["volumes"].as_array().context("no volumes")?;
            let volume =
                volumes.iter().find(|volume| volume["name"] == mount["name"]).context("no volume")?;
            let source = match volume["hostPath"]["path"].as_str() {
                Some(path) => self.on_host(path)?,
                None => self.on_host("/configmap")?,
            };
            match volume["hostPath"]["type"].as_str() {
                Some("DirectoryOrCreate") => fs::create_dir_all(&source)?,
                Some("FileOrCreate") if !source.exists() => write(&source, "")?,
                _ => {}
            }
            let target = mount["mountPath"].as_str().context("no mountPath")?;
            let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
            lines.push_str(&format!("{} {target} {mode}\n", source.display()));
        }
        Ok(lines)
    }

    /// Asks as the kubelet does: any status from 200 to 399 is a success.
    fn probe(&self, name: &str, podway: &Process) -> Result<()> {
        let container = &self.template["containers"][0];
        let request = &container[name]["httpGet"];
        let port =
            container["ports"].as_array().into_iter().flatten().find(|port| port["name"] == request["port"]);
        let port = port.context("the probe's port has no number")?["containerPort"].clone();
        let page =
            format!("http://{}:{port}{}", self.node.ipv4(), request["path"].as_str().context("no path")?);
        let printed =
            self.node.command("curl").args(["-s", "-m", "1", "-w", "\n%{http_code}", &page]).output()?;
        match printed.stdout.rsplit_once('\n').and_then(|(_, status)| status.parse::<u16>().ok()) {
            Some(200..400) => Ok(()),
            _ => Err(anyhow!("{page}: {}\n{}", printed.stdout, podway.log())),
        }
    }

    /// A pod, whose network the container runtime gets from what podway has installed on the host.
    fn attach(&self, name: &str) -> Result<(Host, IpAddr)> {
        let pod = self.node.sandbox(name)?;
        let mut mounts = "/run/netns /run/netns rw\n".to_owned();
        for folder in ["/run/flannel", "/opt/cni/bin", "/etc/cni/net.d", "/var/lib/cni"] {
            let source = self.on_host(folder)?;
            fs::create_dir_all(&source)?;
            mounts.push_str(&format!("{} {folder} rw\n", source.display()));
        }
        let runtime = Contained { name, program: reference("cnitool")?, capabilities: "+all", mounts };
        let command =
            self.contain(runtime)?.env("CNI_PATH", "/opt/cni/bin").env("NETCONFPATH", "/etc/cni/net.d");
        let result: Value = serde_json::from_str(&command.args(["add", "podway", &netns(&pod)]).run()?)?;
        let address: IpNet = serde_json::from_value(result["ips"][0]["address"].clone())?;
        Ok((pod, address.addr()))
    }

    /// A program in a mount namespace of its own.
    fn contain(&self, contained: Contained<'_>) -> Result<Command> {
        let Contained { name, program, capabilities, mounts } = contained;
        let command = self.node.command("unshare").args(["--mount", "sh", "-ceu", CONTAINER, "sh"]);
        let command = command.arg(self.node.folder()?.join("root").join(name)).arg(program);
        Ok(command.arg(capabilities).arg(mounts))
    }

    #[track_caller]
    fn await_route_to(&self, subnet: &str) {
        eventually(SOON, &format!("a route to {subnet}"), || {
            let routes = self.node.command("ip").args(["route", "show", "proto", "105"]).run();
            let routes = routes.map_err(|error| format!("{error:#}"))?;
            if routes.contains(subnet) { Ok(()) } else { Err(routes) }
        });
    }
}

/// What runs in a container, or as a host's container runtime does.
struct Contained<'a> {
    name: &'a str,
    program: PathBuf,
    capabilities: &'a str,
    /// `SOURCE TARGET ro|rw`, a line each.
    mounts: String,
}

/// Runs `$2` as a container: `$1` becomes a read-only root with this machine's programs for an image, and `$4` lists
/// what is mounted there. `$3` = the only capabilities; the rest are its arguments. /proc/sys is read-only, as container
/// runtimes mount it, unless there are all capabilities.
const CONTAINER: &str = r#"
root=$1 program=$2 capabilities=$3 mounts=$4
shift 4
mkdir -p "$root"
mount -t tmpfs tmpfs "$root"
for name in bin sbin lib lib64 usr; do
    if [ -L "/$name" ]; then cp -a "/$name" "$root/"; elif [ -d "/$name" ]; then
        mkdir "$root/$name" && mount --rbind "/$name" "$root/$name"
    fi
done
mkdir "$root/proc" "$root/sys" "$root/dev"
mount --rbind /proc "$root/proc"
if [ "$capabilities" != +all ]; then
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount -o remount,bind,ro "$root/proc/sys"
fi
mount --bind /sys "$root/sys"
mount -o remount,bind,ro "$root/sys"
mount --rbind /dev "$root/dev"
touch "$root/${program##*/}"
mount --bind "$program" "$root/${program##*/}"
printf '%s' "$mounts" | while read -r source target mode; do
    if [ -d "$source" ]; then mkdir -p "$root$target"; else mkdir -p "$root${target%/*}" && touch "$root$target"; fi
    mount --rbind "$source" "$root$target"
    mount -o "remount,bind,$mode" "$root$target"
done
mount -o remount,ro "$root"
exec chroot "$root" setpriv --no-new-privs --inh-caps=-all --bounding-set="$capabilities" "/${program##*/}" "$@"
"#;

/// Fails unless podway takes a configuration: a command that asks the daemon reads it, and finds no daemon.
fn accepted(config: &str) -> Result<()> {
    let file = std::env::temp_dir().join(format!("podway-documented-{}.yaml", std::process::id()));
    fs::write(&file, config)?;
    let mut command = std::process::Command::new(binary("podway")?);
    let output =
        command.args(["status", "--set", "status.socket=/nonexistent", "--config"]).arg(&file).output()?;
    fs::remove_file(&file)?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}\n{config}");
    Ok(())
}

/// Waits until what a program prints has `text` in it.
#[track_caller]
fn await_answer(host: &Host, program: &[&str], text: &str) {
    eventually(SOON, &format!("{text:?} from {program:?} on {}", host.name()), || {
        let output = host.command(program[0]).args(&program[1..]).output();
        let printed = output.map_err(|error| format!("{error:#}"))?.stdout;
        if printed.contains(text) { Ok(()) } else { Err(printed) }
    });
}

fn documents() -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(&fs::read_to_string(MANIFEST)?).context(MANIFEST)
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn subnet(node: &Value) -> Result<String> {
    Ok(node["spec"]["podCIDRs"][0].as_str().context("no podCIDRs")?.to_owned())
}

fn written(path: &Path) -> Result<SystemTime> {
    Ok(fs::metadata(path).with_context(|| path.display().to_string())?.modified()?)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::create_dir_all(path.parent().context("a file at the root")?)?;
    fs::write(path, text).with_context(|| path.display().to_string())
}
