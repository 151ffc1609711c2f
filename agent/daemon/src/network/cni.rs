//! The CNI plugin, put in place at the start, and its network configuration, put in place once the network works
//! (contract N11).

use tracing::{info, warn};

use crate::cni_files;
use crate::config::NetworkConfig;
use crate::message;

/// How far the installation has come. A directory that cannot be written is no reason to stop anything.
#[derive(Debug, Default)]
pub(super) struct Cni {
    installed: bool,
    trouble: Option<String>,
}

impl Cni {
    /// Installs the plugin, which is of no use to anybody before the configuration.
    pub(super) fn begin(network: &NetworkConfig) -> Self {
        let mut cni = Self::default();
        if let Err(error) = cni_files::install_plugin(&network.cni) {
            cni.note(&error);
        }
        cni
    }

    /// Installs the plugin, then the configuration, unless both are in place; whether they are.
    pub(super) async fn install(&mut self, network: &NetworkConfig) -> bool {
        if self.installed {
            return true;
        }
        match put_in_place(network).await {
            Ok(()) => (self.installed, self.trouble) = (true, None),
            Err(error) => self.note(&error),
        }
        self.installed
    }

    fn note(&mut self, error: &anyhow::Error) {
        let text = message::of(error);
        if self.trouble.as_ref() != Some(&text) {
            warn!("the CNI plugin is not installed: {text}");
        }
        self.trouble = Some(text);
    }

    /// Why it is not in place.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }
}

async fn put_in_place(network: &NetworkConfig) -> anyhow::Result<()> {
    cni_files::install_plugin(&network.cni)?;
    let Some(conflist) = cni_files::write_conflist(&network.cni, &network.subnet_file).await? else {
        return Ok(());
    };
    if conflist.changed {
        info!("{}: the kubelet may start pods", conflist.path.display());
    }
    if !conflist.host_ports {
        warn!("plugin portmap is not installed: hostPort has no effect");
    }
    if let Some(other) = conflist.hidden_by {
        warn!("{} comes before {}: remove it", other.display(), conflist.path.display());
    }
    Ok(())
}
