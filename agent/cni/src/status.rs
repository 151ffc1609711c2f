//! STATUS: whether an ADD would be served.

use crate::config::Network;
use crate::error::Error;
use crate::host_local;
use crate::store::Store;
use crate::subnet::NodeSubnets;

/// Fails unless the node has a subnet and a free address in it, of each family.
pub(crate) fn status(network: &Network) -> Result<(), Error> {
    ready(network).map_err(|error| {
        let details = error.details();
        Error::NotAvailable(if details.is_empty() {
            error.to_string()
        } else {
            format!("{error}: {details}")
        })
    })
}

fn ready(network: &Network) -> Result<(), Error> {
    let node = NodeSubnets::read(&network.subnet_file)?;
    let mut store = Store::open(network)?;
    store.reservations.avoid(host_local::held(&network.host_local_directory)?);
    node.subnets.iter().try_for_each(|subnet| store.reservations.next(subnet).map(|_| ()))
}
