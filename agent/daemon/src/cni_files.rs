//! The CNI plugin on the node: its binary, and the network configuration by which the kubelet knows that pods can
//! start (contract N11).
//!
//! The binary is this program. It comes first, at the daemon's start; the configuration comes last, when the network
//! works. Both are written beside and renamed: whoever looks sees the old file or the new one, whole.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use crate::config::CniConfig;

/// The plugin's type, and so its file's name in the directory of plugins.
const PLUGIN: &str = "podway";

/// Runtimes take the first configuration by name; flannel's has this number too.
const CONFLIST: &str = "10-podway.conflist";

/// The plugin for hostPort. A chain that names a plugin which is not there fails as a whole.
const PORTMAP: &str = "portmap";

/// portmap answers within milliseconds; a busy disk may take longer to bring it up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What an operator should know of a written configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflist {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Whether it was not there, or was another.
    pub(crate) changed: bool,
    /// Whether portmap is in the chain; without it, hostPort has no effect.
    pub(crate) host_ports: bool,
    /// Another's configuration that comes before this one, so that runtimes pass ours over.
    pub(crate) hidden_by: Option<PathBuf>,
}

/// Installs this program as the plugin, unless it is there already; whether it was not. Nothing to do without a
/// directory.
pub(crate) fn install_plugin(cni: &CniConfig) -> Result<bool> {
    let folder = &cni.bin_directory;
    if folder.as_os_str().is_empty() {
        return Ok(false);
    }
    // Not its path: that may have been replaced meanwhile.
    install(Path::new("/proc/self/exe"), folder).with_context(|| named("binDirectory", folder))
}

/// Writes the network configuration, to be called once the network works. `None` without a directory.
pub(crate) async fn write_conflist(cni: &CniConfig, subnet_file: &Path) -> Result<Option<Conflist>> {
    let folder = &cni.conf_directory;
    if folder.as_os_str().is_empty() {
        return Ok(None);
    }
    let host_ports = cni.bin_directory.join(PORTMAP).exists();
    let versions = match host_ports {
        true => versions_of(&cni.bin_directory.join(PORTMAP)).await,
        false => None,
    };
    let text = conflist(subnet_file, host_ports, versions.as_deref());
    let path = folder.join(CONFLIST);
    let write = || -> io::Result<Conflist> {
        fs::create_dir_all(folder)?;
        let changed = !fs::read_to_string(&path).is_ok_and(|held| held == text);
        if changed {
            replace(&path, 0o644, |file| io::copy(&mut text.as_bytes(), file).map(|_| ()))?;
        }
        let hidden_by = hidden_by(folder)?;
        Ok(Conflist { path: path.clone(), changed, host_ports, hidden_by })
    };
    write().map(Some).with_context(|| named("confDirectory", folder))
}

/// Removes what was written, the configuration first, so that no runtime calls a plugin that is gone. Another's files
/// stay, and so do pods' reservations and links: they go with the pods.
pub(crate) fn remove(cni: &CniConfig) -> Result<()> {
    for (field, folder, name) in
        [("confDirectory", &cni.conf_directory, CONFLIST), ("binDirectory", &cni.bin_directory, PLUGIN)]
    {
        if folder.as_os_str().is_empty() {
            continue;
        }
        match fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| named(field, folder));
            }
            _ => {}
        }
    }
    Ok(())
}

/// 1.0.0 is what every runtime since containerd 1.6 and every portmap since 1.0 speaks. GC and STATUS came with 1.1.0:
/// a runtime that knows `cniVersions` takes the highest, and portmap must speak that too.
fn conflist(subnet_file: &Path, host_ports: bool, portmap_speaks: Option<&[String]>) -> String {
    let mut plugins = vec![json!({ "type": PLUGIN })];
    if !subnet_file.as_os_str().is_empty() {
        plugins[0]["subnetFile"] = json!(subnet_file);
    }
    if host_ports {
        plugins.push(json!({ "type": PORTMAP, "capabilities": { "portMappings": true } }));
    }
    let newest = "1.1.0".to_owned();
    let all_speak_newest = !host_ports || portmap_speaks.is_some_and(|versions| versions.contains(&newest));
    let mut list = json!({ "cniVersion": "1.0.0", "name": PLUGIN, "plugins": plugins });
    if all_speak_newest {
        list["cniVersions"] = json!(["1.0.0", newest]);
    }
    format!("{list:#}\n")
}

/// What a plugin answers to VERSION; `None` if it does not answer as the specification has it, or not in time.
async fn versions_of(plugin: &Path) -> Option<Vec<String>> {
    let mut command = Command::new(plugin);
    let answer = command.env("CNI_COMMAND", "VERSION").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(ANSWER_TIMEOUT, answer).await.ok()?.ok()?;
    let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
    serde_json::from_value(answer.get("supportedVersions")?.clone()).ok()
}

/// The files that libcni looks at, sorted by name.
fn hidden_by(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut first: Option<PathBuf> = None;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let counts = path
            .extension()
            .and_then(OsStr::to_str)
            .is_some_and(|extension| matches!(extension, "conf" | "conflist" | "json"));
        if counts
            && path.file_name() < Some(OsStr::new(CONFLIST))
            && first.as_ref().is_none_or(|first| path < *first)
        {
            first = Some(path);
        }
    }
    Ok(first)
}

fn install(program: &Path, folder: &Path) -> io::Result<bool> {
    fs::create_dir_all(folder)?;
    let path = folder.join(PLUGIN);
    if same_content(program, &path)? {
        return Ok(false);
    }
    replace(&path, 0o755, |file| io::copy(&mut File::open(program)?, file).map(|_| ()))?;
    Ok(true)
}

/// Brought to the disk before it has its name: a power cut must not leave an empty plugin.
fn replace(path: &Path, mode: u32, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new"));
    let mut file = File::create(&beside)?;
    write(&mut file)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    // Closed before it is run: a file that is open for writing cannot be.
    drop(file);
    fs::rename(&beside, path)
}

fn same_content(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = match (File::open(one)?, File::open(other)) {
        (one, Ok(other)) => (one, other),
        (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        (_, Err(error)) => return Err(error),
    };
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let read = one.read(&mut left)?;
        if read == 0 {
            return Ok(true);
        }
        other.read_exact(&mut right[..read])?;
        if left[..read] != right[..read] {
            return Ok(false);
        }
    }
}

fn named(field: &str, folder: &Path) -> String {
    format!("network.cni.{field} {}", folder.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folders {
        root: PathBuf,
        cni: CniConfig,
    }

    impl Folders {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("podway-cni-files-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            let cni = CniConfig { bin_directory: root.join("bin"), conf_directory: root.join("net.d") };
            fs::create_dir_all(&cni.bin_directory).unwrap();
            Self { root, cni }
        }

        fn portmap(&self, script: &str) {
            let path = self.cni.bin_directory.join(PORTMAP);
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }

        async fn conflist(&self) -> (Conflist, Value) {
            let subnet_file = Path::new("/run/flannel/subnet.env");
            let written = write_conflist(&self.cni, subnet_file).await.unwrap().unwrap();
            let text = fs::read_to_string(&written.path).unwrap();
            (written, serde_json::from_str(&text).unwrap())
        }
    }

    impl Drop for Folders {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    #[test]
    fn n11_the_plugin_is_this_program_and_is_copied_once() {
        let folders = Folders::new("plugin");
        assert!(install_plugin(&folders.cni).unwrap());
        let path = folders.cni.bin_directory.join("podway");
        assert!(same_content(Path::new("/proc/self/exe"), &path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        assert!(!install_plugin(&folders.cni).unwrap());
        fs::write(&path, "an older one").unwrap();
        assert!(install_plugin(&folders.cni).unwrap());
        assert_eq!(fs::read_dir(&folders.cni.bin_directory).unwrap().count(), 1, "nothing lies beside it");
    }

    #[tokio::test]
    async fn n11_the_chain_has_portmap_where_there_is_one_and_the_newest_version_where_it_speaks_that() {
        let folders = Folders::new("conflist");
        let (written, list) = folders.conflist().await;
        assert!(written.changed && !written.host_ports);
        assert_eq!(list["plugins"], json!([{ "type": "podway", "subnetFile": "/run/flannel/subnet.env" }]));
        assert_eq!(list["cniVersions"], json!(["1.0.0", "1.1.0"]));
        folders.portmap(
            "#!/bin/sh\necho '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.4.0\",\"1.0.0\"]}'\n",
        );
        let (written, list) = folders.conflist().await;
        assert!(written.changed && written.host_ports);
        assert_eq!(list["plugins"][1]["capabilities"]["portMappings"], true);
        assert_eq!((&list["cniVersion"], &list["cniVersions"]), (&json!("1.0.0"), &Value::Null));
        assert!(!folders.conflist().await.0.changed);
    }

    #[tokio::test]
    async fn n11_a_portmap_that_does_not_answer_holds_up_neither_the_configuration_nor_the_daemon() {
        let folders = Folders::new("silent");
        folders.portmap("#!/bin/sh\nexec sleep 30\n");
        let elsewhere = tokio::spawn(async { tokio::time::sleep(Duration::from_millis(50)).await });
        let started = std::time::Instant::now();
        let (written, list) = folders.conflist().await;
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        assert!(elsewhere.is_finished(), "the thread did nothing else meanwhile");
        assert!(written.host_ports && list["plugins"][1]["type"] == "portmap");
        assert_eq!(list["cniVersions"], Value::Null);
    }

    #[tokio::test]
    async fn n11_a_configuration_that_hides_ours_is_named() {
        let folders = Folders::new("hidden");
        assert_eq!(folders.conflist().await.0.hidden_by, None);
        for name in ["20-later.conflist", "05-first.txt", "10-flannel.conflist", "00-old.conf"] {
            fs::write(folders.cni.conf_directory.join(name), "{}").unwrap();
        }
        let hidden_by = folders.conflist().await.0.hidden_by;
        assert_eq!(hidden_by, Some(folders.cni.conf_directory.join("00-old.conf")));
    }

    #[tokio::test]
    async fn n11_removal_takes_ours_and_leaves_others() {
        let folders = Folders::new("remove");
        install_plugin(&folders.cni).unwrap();
        folders.conflist().await;
        folders.portmap("");
        remove(&folders.cni).unwrap();
        remove(&folders.cni).unwrap();
        let left: Vec<_> = fs::read_dir(&folders.cni.bin_directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["portmap"]);
        assert_eq!(fs::read_dir(&folders.cni.conf_directory).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn n11_nothing_is_written_without_directories() {
        let nowhere = CniConfig::default();
        assert!(!install_plugin(&nowhere).unwrap());
        assert_eq!(write_conflist(&nowhere, Path::new("/run/flannel/subnet.env")).await.unwrap(), None);
        remove(&nowhere).unwrap();
    }
}
