//! The reference components: Kubernetes, flannel and the CNI plugins, built from the Go modules in tests/reference.
//! Their README has the same recipes to type by hand.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::{go, step, workspace::Workspace};

/// What a control plane for the tests is made of.
const CONTROL_PLANE: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Component {
    /// etcd, kube-apiserver, kube-controller-manager, kubectl, kube-proxy.
    Kube,
    /// flanneld.
    Flannel,
    /// The CNI plugins and cnitool.
    Cni,
    /// flannel's CNI plugin.
    FlannelCni,
}

/// Builds the components whose module files, recipe or Go have changed since they were last built.
pub(crate) fn build(workspace: &Workspace, components: &[Component]) -> Result<()> {
    let go = go::require(workspace)?;
    for component in components {
        let recipe = component.recipe();
        let stamp = recipe.stamp(workspace, &go.to_string())?;
        if recipe.is_built(workspace, &stamp) {
            continue;
        }
        recipe.build(workspace)?;
        fs::write(recipe.stamp_file(workspace), stamp)?;
    }
    Ok(())
}

/// What the tests run against. They take a component from KUBEBUILDER_ASSETS if it is there, so that with a whole
/// control plane there Kubernetes need not be built.
pub(crate) fn build_for_tests(workspace: &Workspace) -> Result<()> {
    let Some(assets) = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) else {
        return build(workspace, Component::value_variants());
    };
    match missing_in(&assets) {
        missing if missing.is_empty() => {
            step::say(&format!("Kubernetes is not built: KUBEBUILDER_ASSETS={} has it", assets.display()));
            build(workspace, &[Component::Flannel, Component::Cni, Component::FlannelCni])
        }
        missing => {
            let names = missing.join(", ");
            step::say(&format!("KUBEBUILDER_ASSETS={} lacks {names}: Kubernetes is built", assets.display()));
            build(workspace, Component::value_variants())
        }
    }
}

fn missing_in(assets: &Path) -> Vec<&'static str> {
    CONTROL_PLANE.into_iter().filter(|name| !assets.join(name).is_file()).collect()
}

impl Component {
    fn recipe(self) -> Recipe {
        match self {
            Self::Kube => Recipe {
                folder: "kubernetes",
                versioned: "k8s.io/kubernetes",
                version_variable: "k8s.io/component-base/version.gitVersion",
                // kube-proxy on its own too: for a fair measure of its memory.
                targets: &[
                    Target {
                        title: "Building the reference control plane (about 5 min the first time)",
                        file: "kube-reference",
                        package: ".",
                    },
                    Target { title: "Building the reference kube-proxy", file: "", package: "tool" },
                ],
                binaries: &["kube-reference", "kube-proxy"],
                links: &CONTROL_PLANE,
                cgo: false,
            },
            Self::Flannel => Recipe {
                folder: "flannel",
                versioned: "github.com/flannel-io/flannel",
                version_variable: "github.com/flannel-io/flannel/pkg/version.Version",
                targets: &[Target {
                    title: "Building the reference flannel (about 1 min the first time)",
                    file: "flanneld",
                    package: "github.com/flannel-io/flannel",
                }],
                binaries: &["flanneld"],
                links: &[],
                // Its udp backend is C there.
                cgo: cfg!(target_arch = "x86_64"),
            },
            Self::Cni => Recipe {
                folder: "cni",
                versioned: "github.com/containernetworking/plugins",
                version_variable: "github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion",
                targets: &[Target { title: "Building the CNI plugins", file: "", package: "tool" }],
                binaries: &[
                    "bandwidth",
                    "bridge",
                    "cnitool",
                    "host-local",
                    "loopback",
                    "portmap",
                    "ptp",
                    "tuning",
                ],
                links: &[],
                cgo: false,
            },
            Self::FlannelCni => Recipe {
                folder: "flannel-cni",
                versioned: "github.com/containernetworking/plugins",
                version_variable: "github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion",
                targets: &[Target { title: "Building flannel's CNI plugin", file: "", package: "tool" }],
                binaries: &["flannel"],
                links: &[],
                cgo: false,
            },
        }
    }
}

/// How a module under tests/reference becomes binaries.
#[derive(Debug)]
struct Recipe {
    folder: &'static str,
    /// The required module whose version the binaries report, and the variable that the linker sets to it: Go does
    /// not pass a dependency's version to its own `--version`.
    versioned: &'static str,
    version_variable: &'static str,
    targets: &'static [Target],
    binaries: &'static [&'static str],
    /// Further names of the first binary.
    links: &'static [&'static str],
    cgo: bool,
}

/// One `go build`.
#[derive(Debug)]
struct Target {
    title: &'static str,
    /// "" for the package's own name, or for several packages.
    file: &'static str,
    package: &'static str,
}

impl Recipe {
    fn build(&self, workspace: &Workspace) -> Result<()> {
        let bin = workspace.reference_bin();
        fs::create_dir_all(&bin)?;
        for target in self.targets {
            step::run(workspace, target.title, self.go_build(workspace, target)?)?;
        }
        for name in self.links {
            link(self.binaries[0], &bin.join(name))?;
        }
        Ok(())
    }

    fn go_build(&self, workspace: &Workspace, target: &Target) -> Result<Command> {
        let go_mod = fs::read_to_string(self.source(workspace).join("go.mod"))?;
        let version = required_version(&go_mod, self.versioned)
            .with_context(|| format!("{}/go.mod does not require {}", self.folder, self.versioned))?;
        let mut flags = format!("-s -w -X {}={version}", self.version_variable);
        let mut go = workspace.command("go");
        go.current_dir(self.source(workspace)).args(["build", "-v", "-trimpath", "-buildvcs=false"]);
        if self.cgo {
            go.env("CGO_ENABLED", "1").args(["-tags", "netgo,osusergo"]);
            flags.push_str(" -extldflags -static");
        } else {
            go.env("CGO_ENABLED", "0");
        }
        // With an empty file name the path ends in a slash, which is Go's sign for a folder.
        go.args(["-ldflags", &flags])
            .arg("-o")
            .arg(workspace.reference_bin().join(target.file))
            .arg(target.package);
        Ok(go)
    }

    fn is_built(&self, workspace: &Workspace, stamp: &str) -> bool {
        let bin = workspace.reference_bin();
        let current = fs::read_to_string(self.stamp_file(workspace)).is_ok_and(|built| built == stamp);
        current && self.binaries.iter().chain(self.links).all(|name| bin.join(name).is_file())
    }

    fn stamp_file(&self, workspace: &Workspace) -> PathBuf {
        workspace.reference_bin().with_file_name(format!("{}.stamp", self.folder))
    }

    /// Everything that the binaries depend on, as text: equal text, equal binaries.
    fn stamp(&self, workspace: &Workspace, go: &str) -> Result<String> {
        let mut stamp = format!("go {go}\n{self:?}\n");
        for file in module_files(&self.source(workspace))? {
            let text = fs::read_to_string(&file)?;
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            stamp.push_str(&format!("--- {name}\n{text}"));
        }
        Ok(stamp)
    }

    fn source(&self, workspace: &Workspace) -> PathBuf {
        workspace.root.join("tests/reference").join(self.folder)
    }
}

/// go.mod, go.sum and the sources, in the order of their names.
fn module_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| {
        file.extension().is_some_and(|extension| ["go", "mod", "sum"].iter().any(|known| extension == *known))
    });
    files.sort();
    Ok(files)
}

/// The version in a `require` line of go.mod.
fn required_version<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word == "require");
        (words.next() == Some(module)).then(|| words.next()).flatten()
    })
}

fn link(target: &str, link: &Path) -> Result<()> {
    if link.symlink_metadata().is_ok() {
        fs::remove_file(link)?;
    }
    symlink(target, link).with_context(|| format!("cannot link {}", link.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_comes_from_the_require_line() {
        let go_mod =
            "module m\nrequire (\n\ta.b/c/v2 v2.0.1\n\ta.b/c v1.2.3 // indirect\n)\nrequire d.e/f v0.1.0\n";
        assert_eq!(required_version(go_mod, "a.b/c"), Some("v1.2.3"));
        assert_eq!(required_version(go_mod, "d.e/f"), Some("v0.1.0"));
        assert_eq!(required_version(go_mod, "absent"), None);
    }

    #[test]
    fn every_recipe_finds_its_module_and_version() {
        let workspace = Workspace::find().unwrap();
        for component in Component::value_variants() {
            let recipe = component.recipe();
            let command = format!("{:?}", recipe.go_build(&workspace, &recipe.targets[0]).unwrap());
            assert!(command.contains(&format!("{}=v", recipe.version_variable)), "{command}");
        }
    }

    #[test]
    fn a_stamp_changes_with_go_and_with_the_module() {
        let root = env::temp_dir().join(format!("podway-xtask-stamp-{}", std::process::id()));
        let workspace = Workspace { root: root.clone() };
        let recipe = Component::Cni.recipe();
        let source = recipe.source(&workspace);
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("go.mod"), "module cni").unwrap();

        let first = recipe.stamp(&workspace, "1.26.0").unwrap();
        let again = recipe.stamp(&workspace, "1.26.0").unwrap();
        let other_go = recipe.stamp(&workspace, "1.27.0").unwrap();
        fs::write(source.join("README.md"), "not built from").unwrap();
        let with_readme = recipe.stamp(&workspace, "1.26.0").unwrap();
        fs::write(source.join("go.mod"), "module cni2").unwrap();
        let other_module = recipe.stamp(&workspace, "1.26.0").unwrap();

        fs::remove_dir_all(&root).unwrap();
        assert_eq!(first, again);
        assert_eq!(first, with_readme);
        assert_ne!(first, other_go);
        assert_ne!(first, other_module);
    }
}
