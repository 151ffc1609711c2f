//! DEL and GC: the veth pair first, then the addresses, so that no address is free while a route leads to its last
//! holder.

use std::collections::BTreeSet;

use crate::attachment::{Attachment, alias_prefix};
use crate::config::Network;
use crate::error::Error;
use crate::netlink::Netlink;
use crate::store::Store;

/// Detaches a pod. What is gone already, as the link is with its namespace, is as wanted; so is all of it, when nothing
/// is known of the attachment.
pub(crate) fn del(network: &Network, attachment: &Attachment) -> Result<(), Error> {
    detach(network, attachment, &mut Netlink::open()?)
}

/// [`del`] over an open socket. A link of that name that belongs to something else stays.
pub(crate) fn detach(network: &Network, attachment: &Attachment, host: &mut Netlink) -> Result<(), Error> {
    remove_link(network, attachment, host)?;
    release(network, [attachment])
}

/// Detaches whatever is attached to the network and not valid any more. Goes on after a failure, and names all of them.
pub(crate) fn gc(network: &Network) -> Result<(), Error> {
    let mut host = Netlink::open()?;
    let mut failures = Vec::new();
    let mut note = |removed: Result<(), Error>| match removed {
        Ok(()) => true,
        Err(error) => {
            failures.push(format!("{error}: {}", error.details()));
            false
        }
    };
    let mut stale = stale(network)?;
    // Not under the lock: the kernel takes its time for each.
    stale.retain(|attachment| note(remove_link(network, attachment, &mut host)));
    for link in unreserved_links(network, &mut host)? {
        note(host.delete_link(&link));
    }
    release(network, &stale)?;
    if failures.is_empty() { Ok(()) } else { Err(Error::Leftovers(failures)) }
}

fn remove_link(network: &Network, attachment: &Attachment, host: &mut Netlink) -> Result<(), Error> {
    match host.link(&attachment.link(&network.name))? {
        Some(link) if attachment.may_be(&network.name, &link) => host.delete_link(&link.name),
        _ => Ok(()),
    }
}

fn stale(network: &Network) -> Result<Vec<Attachment>, Error> {
    let valid: BTreeSet<&Attachment> = network.valid.iter().collect();
    let store = Store::open(network)?;
    let stale = store.reservations.attachments().filter(|attachment| !valid.contains(attachment));
    Ok(stale.cloned().collect())
}

/// Links that have this network's mark and belong to no valid attachment: those whose reservation was lost.
fn unreserved_links(network: &Network, host: &mut Netlink) -> Result<Vec<String>, Error> {
    let valid: BTreeSet<String> =
        network.valid.iter().map(|attachment| attachment.alias(&network.name)).collect();
    let prefix = alias_prefix(&network.name);
    let is_stale = |alias: &String| alias.starts_with(&prefix) && !valid.contains(alias);
    let links =
        host.links()?.into_iter().filter(|link| link.veth && link.alias.as_ref().is_some_and(is_stale));
    Ok(links.map(|link| link.name).collect())
}

fn release<'a>(
    network: &Network,
    attachments: impl IntoIterator<Item = &'a Attachment>,
) -> Result<(), Error> {
    let mut store = Store::open(network)?;
    let mut released = false;
    for attachment in attachments {
        released |= store.reservations.release(attachment);
    }
    if released { store.save() } else { Ok(()) }
}
