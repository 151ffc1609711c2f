//! What host-local has given away on this node.
//!
//! A node that podway takes over has pods of the network before: they keep their addresses, from the same subnet, until
//! they end. host-local keeps a file for each, named for the address, in a folder for each network.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::error::Error;

/// The addresses that have a file; none if host-local was never here.
pub(crate) fn held(folder: &Path) -> Result<BTreeSet<IpAddr>, Error> {
    let mut held = BTreeSet::new();
    for network in names(folder)? {
        let addresses = names(&folder.join(network))?;
        held.extend(addresses.iter().filter_map(|name| name.parse::<IpAddr>().ok()));
    }
    Ok(held)
}

/// What lies in a folder; nothing if it is none.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(Error::file("list", folder)(error)),
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().map_err(Error::file("list", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n11_the_addresses_of_all_of_host_locals_networks_are_found() {
        let folder = std::env::temp_dir().join(format!("podway-cni-host-local-{}", std::process::id()));
        for file in
            ["cbr0/10.77.1.9", "cbr0/fd77::9", "cbr0/last_reserved_ip.0", "cbr0/lock", "x/10.77.1.8", "y"]
        {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let found = held(&folder).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, ["10.77.1.8", "10.77.1.9", "fd77::9"].map(|ip| ip.parse().unwrap()).into());
        assert_eq!(held(&folder).unwrap(), BTreeSet::new());
    }
}
