//! flannel's etcd store: the nodes' subnets as keys with leases (contract N3).
//!
//! I/O only: keys, values and which subnet to take are `podway_overlay`'s.

mod client;
mod follow;
mod hold;
mod mirror;
mod store;
mod teller;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use podway_overlay::{LeaseAttributes, NetConf, PerFamily, Range};
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;

use self::follow::Follower;
use self::store::Store;
use crate::outage::Outage;
use crate::{Error, EtcdConfig, Event, Problem};

/// flannel asks again as often.
const CONFIG_INTERVAL: Duration = Duration::from_secs(1);

/// An etcd that flannel keeps, or could keep, its subnets in.
#[derive(Clone)]
pub struct EtcdStore {
    store: Store,
}

/// What one node wants of the store.
#[derive(Debug, Clone)]
pub struct LeaseRequest {
    /// The node's name, under which its own subnets are told.
    pub node: Arc<str>,
    /// What subnets are taken from, of each family that is on; from [`EtcdStore::net_conf`].
    pub ranges: PerFamily<Option<Range>>,
    /// The subnets of a previous run, from subnet.env.
    pub previous: PerFamily<Option<IpNet>>,
    /// How long before its end a lease is renewed.
    pub renew_margin: Duration,
    /// What peers are to know; written again when it changes.
    pub attributes: watch::Receiver<LeaseAttributes>,
}

impl EtcdStore {
    /// Reads certificates and keys; connects to nothing yet.
    ///
    /// # Errors
    /// Fields that cannot be used, by name.
    pub async fn open(config: &EtcdConfig) -> Result<Self, Error> {
        if !(1..=1439).contains(&config.renew_margin) {
            let cause = format!("{} is not from 1 to 1439 minutes", config.renew_margin);
            return Err(Error::EtcdField { field: "renewMargin", cause });
        }
        Ok(Self { store: Store::open(config)? })
    }

    /// The net-conf.json under `<prefix>/config`. Asked for each second until it is there, valid, and its ranges can be
    /// cut into subnets; what stands in the way meanwhile is told as [`Event::Problem`], once a minute.
    pub async fn net_conf(&self, problems: &Sender<Event>) -> NetConf {
        let mut store = self.store.clone();
        let mut outage = Outage::default();
        loop {
            let problem = match read_net_conf(&mut store).await {
                Ok(net_conf) => return net_conf,
                Err(problem) => problem,
            };
            if outage.failed(&problem.to_string(), Instant::now()) {
                // Who does not listen is not told.
                let _ = problems.send(Event::Problem(problem)).await;
            }
            tokio::time::sleep(CONFIG_INTERVAL).await;
        }
    }

    /// Holds a subnet for this node, and tells of it and of those of all other nodes until the receiver of `events` is
    /// dropped; never ends before.
    ///
    /// The own Node has the requested name and the subnets that are held; peers are named by their keys. Events of
    /// Nodes and one [`Event::Synced`] come first when the list is through and a subnet is held: before, there is
    /// nothing to route to. Whatever goes wrong is an [`Event::Problem`] and tried again, and what was told stands
    /// meanwhile.
    ///
    /// The subnet is acquired, published and renewed as flannel does. A lease that was deleted, has run out or was taken
    /// is acquired anew, if possible with the same subnets; only then does the own Node change.
    pub async fn run(self, request: LeaseRequest, events: Sender<Event>) {
        Follower::new(self.store, request, events).run().await;
    }
}

async fn read_net_conf(store: &mut Store) -> Result<NetConf, Problem> {
    let problem = |subject: String, message: String| Problem { subject, field: String::new(), message };
    let key = store.config_key();
    let text = match store.config().await {
        Ok(text) => text,
        Err(error) => return Err(problem("network configuration".to_owned(), error.to_string())),
    };
    let subject = format!("etcd key {key}");
    let Some(text) = text else {
        let message = "there is no such key (of etcd's v3 API): it must hold flannel's net-conf.json";
        return Err(problem(subject, message.to_owned()));
    };
    let checked = NetConf::parse(&text).and_then(|net_conf| net_conf.ranges().map(|_| net_conf));
    checked.map_err(|error| problem(subject, error.to_string()))
}
