//! `subnet.env`, by which flannel's CNI plugin, and ours, learn the node's subnet (contract N9).

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};
use podway_netlink::Netlink;
use podway_overlay::Overlay;

use super::overlay_settings;
use crate::config::Config;

/// Writes the file unless it has this content. Written beside and renamed, so that nobody reads half of it.
pub(super) fn write(path: &Path, content: &str) -> Result<()> {
    if path.as_os_str().is_empty() || fs::read_to_string(path).is_ok_and(|held| held == content) {
        return Ok(());
    }
    let write = || -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        let beside = folder.join(format!(".{}", path.file_name().unwrap_or_default().to_string_lossy()));
        fs::write(&beside, content)?;
        fs::rename(&beside, path)
    };
    write().with_context(|| format!("network.subnetFile {}", path.display()))
}

/// Removes the file, if podway's links show that it runs the pod network here; a flannel beside a podway that only
/// runs Services, or that was given the node back, keeps its own (contract S22). To be called before the links go.
pub(crate) async fn remove(config: &Config) -> Result<()> {
    let path = &config.network.subnet_file;
    let sought = Overlay::new(overlay_settings(config)?)?.sought();
    let observed = Netlink::open()?.observe(&sought).await?;
    if observed.are_flannels() || !observed.links.values().any(|link| link.ours) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound && !path.as_os_str().is_empty() => {
            bail!("{}: {error}", path.display())
        }
        _ => Ok(()),
    }
}
