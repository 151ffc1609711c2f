//! Every flag of flanneld, with its default (flannel, main.go).

/// A flag.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flag {
    /// Its name without dashes.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it is when nobody gives it.
    pub default: &'static str,
    /// What it does here.
    pub help: &'static str,
    /// Why giving it changes nothing here, if so.
    pub idle: Option<&'static str>,
}

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any text.
    Text,
    /// Any text, and it may be repeated.
    Several,
    /// True or false; its name alone means true.
    Switch,
    /// A whole number.
    Number,
}

/// The flag of this name.
pub(crate) fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

const LOGS_GO_TO_STDERR: &str = "the log goes to standard error";

/// In the order of their names. Those of klog that today's flannel does not have any more were in its older versions.
pub(crate) const FLAGS: &[Flag] = &[
    switch("alsologtostderr", "false", "of older versions").idle(LOGS_GO_TO_STDERR),
    text("etcd-cafile", "", "PEM file with the authorities of etcd's certificate"),
    text("etcd-certfile", "", "PEM file with the certificate for etcd"),
    text(
        "etcd-endpoints",
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "etcd servers, separated by commas",
    ),
    text("etcd-keyfile", "", "PEM file with the key for etcd"),
    text("etcd-password", "", "password for etcd"),
    text("etcd-prefix", "/coreos.com/network", "what flannel's keys in etcd begin with"),
    text("etcd-username", "", "user name for etcd"),
    text("healthz-ip", "0.0.0.0", "address to serve /healthz at"),
    number("healthz-port", "0", "port to serve /healthz at; 0: none"),
    several(
        "iface",
        "interface that reaches the other nodes, by name or address; repeated: the first that exists",
    ),
    text(
        "iface-can-reach",
        "",
        "address whose route leads through the interface that reaches the other nodes",
    ),
    several("iface-regex", "pattern for the interface's address or name, tried after iface; may be repeated"),
    switch("ip-blackhole-route", "false", "end packets to unused addresses of the own subnet on this node"),
    switch("ip-masq", "false", "masquerade what pods send out of the pod network"),
    switch("ip-masq-fully-random-disable", "false", "do not randomise the ports of masqueraded connections"),
    switch("iptables-forward-rules", "true", "let pod traffic through other programs' forward chains"),
    number("iptables-resync", "5", "seconds between two looks at the rules")
        .idle("rules and routes are looked at when the kernel reports a change"),
    text("kube-annotation-prefix", "flannel.alpha.coreos.com", "what flannel's Node annotations begin with"),
    text("kube-api-url", "", "the Kubernetes API server; not needed in a pod"),
    switch("kube-subnet-mgr", "false", "take subnets from Kubernetes Nodes, not from etcd"),
    text("kubeconfig-file", "", "kubeconfig file; not needed in a pod"),
    text("log_backtrace_at", "", "of klog").idle("there are no Go stack traces here"),
    text("log_dir", "", "of older versions").idle(LOGS_GO_TO_STDERR),
    switch("logtostderr", "true", "of older versions").idle(LOGS_GO_TO_STDERR),
    text(
        "net-config-path",
        "/etc/kube-flannel/net-conf.json",
        "the network configuration, with kube-subnet-mgr",
    ),
    text("public-ip", "", "IPv4 address that other nodes reach this one at"),
    text("public-ipv6", "", "IPv6 address that other nodes reach this one at"),
    switch(
        "set-node-network-unavailable",
        "true",
        "set the Node's condition NetworkUnavailable=False when ready",
    ),
    text("stderrthreshold", "", "of older versions").idle(LOGS_GO_TO_STDERR),
    text("subnet-file", "/run/flannel/subnet.env", "file to write this node's subnet and MTU to"),
    number(
        "subnet-lease-renew-margin",
        "60",
        "minutes before its end at which a lease is renewed, 1 to 1439",
    ),
    number("v", "0", "log level: from 2 on, debug"),
    switch("version", "false", "print the version and exit"),
    text("vmodule", "", "of klog").idle("there are no Go source files here"),
];

const fn text(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::Text, default, help, idle: None }
}

const fn several(name: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::Several, default: "", help, idle: None }
}

const fn switch(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::Switch, default, help, idle: None }
}

const fn number(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::Number, default, help, idle: None }
}

impl Flag {
    const fn idle(self, why: &'static str) -> Self {
        Self { idle: Some(why), ..self }
    }
}
