//! The machine underneath: its distribution, its user, and the names of packages there.

use std::{fs, os::unix::fs::MetadataExt};

use anyhow::{Result, bail};

/// A distribution's way to install packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packaging {
    /// Debian, Ubuntu and their descendants; the only one that xtask carries out itself.
    Apt,
    Dnf,
    Pacman,
}

impl Packaging {
    /// What this machine has, by /etc/os-release.
    pub(crate) fn detect() -> Option<Self> {
        Self::of_os_release(&fs::read_to_string("/etc/os-release").ok()?)
    }

    /// Reads `ID` first and then `ID_LIKE`, which names what it descends from, nearest first:
    /// <https://www.freedesktop.org/software/systemd/man/latest/os-release.html>.
    fn of_os_release(text: &str) -> Option<Self> {
        let names = field(text, "ID").into_iter().chain(field(text, "ID_LIKE"));
        names.flat_map(str::split_whitespace).find_map(|name| match name {
            "debian" | "ubuntu" => Some(Self::Apt),
            "fedora" | "rhel" | "centos" => Some(Self::Dnf),
            "arch" => Some(Self::Pacman),
            _ => None,
        })
    }

    /// What to type, as root, to install `packages`.
    pub(crate) fn install_command(self, packages: &[&str]) -> String {
        let install = match self {
            Self::Apt => "apt-get install -y --no-install-recommends",
            Self::Dnf => "dnf install -y",
            Self::Pacman => "pacman -S --needed",
        };
        format!("{install} {}", packages.join(" "))
    }
}

/// Whether this process may make network namespaces and install packages.
pub(crate) fn is_root() -> bool {
    // /proc/self belongs to the effective user.
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// An error that names `subcommand` and what it needs root for.
pub(crate) fn require_root(subcommand: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!(
        "`cargo xtask {subcommand}` needs root, for network namespaces, nftables and eBPF:\n\
         \n    sudo -E env \"PATH=$PATH\" cargo xtask {subcommand}"
    )
}

fn field<'a>(os_release: &'a str, key: &str) -> Option<&'a str> {
    os_release.lines().find_map(|line| {
        let value = line.trim().strip_prefix(key)?.strip_prefix('=')?;
        Some(value.trim_matches(['"', '\'']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_descendants_use_apt() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n";
        let mint = "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n";
        assert_eq!(Packaging::of_os_release(debian), Some(Packaging::Apt));
        assert_eq!(Packaging::of_os_release(mint), Some(Packaging::Apt));
    }

    #[test]
    fn other_distributions_are_told_apart() {
        assert_eq!(
            Packaging::of_os_release("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\""),
            Some(Packaging::Dnf)
        );
        assert_eq!(Packaging::of_os_release("ID=arch"), Some(Packaging::Pacman));
        assert_eq!(Packaging::of_os_release("ID=nixos\nVERSION_ID=25.05"), None);
        assert_eq!(Packaging::of_os_release(""), None);
    }

    #[test]
    fn the_command_can_be_pasted() {
        let command = Packaging::Apt.install_command(&["nftables", "iproute2"]);
        assert_eq!(command, "apt-get install -y --no-install-recommends nftables iproute2");
    }
}
