//! Switches under /proc/sys/net of the namespace that the thread is in.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::error::Error;

/// Switches forwarding on for the family of each address, as every CNI plugin with routed pods does.
pub(crate) fn forward(addresses: &[IpAddr]) -> Result<(), Error> {
    for address in addresses {
        set(if address.is_ipv4() { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" }, "1")?;
    }
    Ok(())
}

/// Lets a pod's interface have IPv6 addresses, and keep them when it is set down and up again.
pub(crate) fn admit_ipv6(ifname: &str) -> Result<(), Error> {
    set("ipv6/conf/lo/disable_ipv6", "0")?;
    set(&format!("ipv6/conf/{ifname}/disable_ipv6"), "0")?;
    set(&format!("ipv6/conf/{ifname}/keep_addr_on_down"), "1")
}

/// For the node's end of a pod's link: no word of the pod's changes the node's routes, and the link-local address, from
/// which the node asks for the pod's MAC on behalf of others, is usable at once instead of after duplicate detection.
pub(crate) fn settle_ipv6(link: &str) -> Result<(), Error> {
    set(&format!("ipv6/conf/{link}/accept_ra"), "0")?;
    set(&format!("ipv6/conf/{link}/accept_dad"), "0")
}

/// Writes only what differs: some of these take the kernel's lock on all links.
fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = PathBuf::from("/proc/sys/net").join(name);
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == value => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound && name.starts_with("ipv6") => {
            let cause = io::Error::new(error.kind(), "this kernel has IPv6 switched off");
            return Err(Error::file("write", path)(cause));
        }
        Err(error) => return Err(Error::file("read", path)(error)),
    }
    fs::write(&path, value).map_err(Error::file("write", path))
}
