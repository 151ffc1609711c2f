//! Builds the eBPF programs: finds a rustc that knows the BPF target, and bpf-linker.
//!
//! Way 1 is rustup's nightly with `rust-src`, from which `core` is built; way 2 is a distribution's rustc that brings a
//! `core` for BPF along (Debian: `rustc-web`). Cargo stays the one that runs this.

use std::{
    env::{self, consts::ARCH},
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    host::{self, Packaging},
    setup, step,
    workspace::{Workspace, find_program},
};

/// The Debian packages of way 2.
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
/// The last bpf-linker that loads the LLVM of the rustc in use; newer ones are built for one LLVM.
const BPF_LINKER_VERSION: &str = "0.10.4";
const BPF_TARGET: &str = "bpfel-unknown-none";
/// Not looked for in PATH, where rustup's comes first.
const DISTRIBUTION_RUSTC: &str = "/usr/bin/rustc";
const PACKAGE: &str = "podway-ebpf-programs";

/// Something that [`build`] needs and this machine lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// A rustc for the BPF target.
    Rustc,
    /// bpf-linker.
    BpfLinker,
}

/// What [`build`] cannot do without, in the order of installation.
pub(crate) fn missing(root: &Path) -> Vec<Missing> {
    let workspace = Workspace { root: root.to_owned() };
    let rustc = Compiler::find(&workspace).is_none().then_some(Missing::Rustc);
    let linker = find_linker(&workspace).is_none().then_some(Missing::BpfLinker);
    rustc.into_iter().chain(linker).collect()
}

/// Installs what is missing, or fails with what to type.
pub(crate) fn install(root: &Path) -> Result<()> {
    let workspace = Workspace { root: root.to_owned() };
    for missing in missing(root) {
        match missing {
            Missing::Rustc if Packaging::detect() == Some(Packaging::Apt) && host::is_root() => {
                setup::apt_install(&workspace, &DEBIAN_PACKAGES)?;
            }
            Missing::Rustc => bail!("{}", missing.remedy()),
            Missing::BpfLinker => install_bpf_linker(&workspace)?,
        }
    }
    Ok(())
}

/// Compiles ebpf/programs and returns the object's path, target/ebpf/podway.bpf.o.
///
/// The object's file is touched only when its content changes, so that whoever embeds it is not built again for
/// nothing.
pub(crate) fn build(root: &Path) -> Result<PathBuf> {
    let workspace = Workspace { root: root.to_owned() };
    let compiler = Compiler::find(&workspace).with_context(|| Missing::Rustc.remedy())?;
    let linker = find_linker(&workspace).with_context(|| Missing::BpfLinker.remedy())?;
    let target_dir = workspace.target().join("ebpf");
    let mut cargo = compiler.cargo_build(&workspace)?;
    cargo
        .args(["--package", PACKAGE, "--profile", "bpf", "--target", BPF_TARGET, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags())
        .env("PATH", path_with(&linker)?);
    let title =
        format!("Building the eBPF programs ({}, {})", compiler.describe(&workspace)?, linker.display());
    step::run(&workspace, &title, cargo)?;

    let object = fs::read(target_dir.join(BPF_TARGET).join("bpf").join(PACKAGE))?;
    refuse_panics(&object)?;
    let path = target_dir.join("podway.bpf.o");
    if fs::read(&path).ok().as_ref() != Some(&object) {
        fs::write(&path, &object).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(path)
}

fn install_bpf_linker(workspace: &Workspace) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo
        .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--root"])
        .arg(workspace.tools())
        .env_remove("CARGO_TARGET_DIR");
    step::run(workspace, &format!("Building bpf-linker {BPF_LINKER_VERSION} (about 1 min)"), cargo)
}

impl Missing {
    /// What is wrong, and the commands that mend it.
    fn remedy(self) -> String {
        match self {
            Self::Rustc => format!(
                "no rustc for the BPF target. Either, on Debian and Ubuntu:\n\n    {}\n\nor:\n\n    \
                 rustup toolchain install nightly --component rust-src",
                Packaging::Apt.install_command(&DEBIAN_PACKAGES)
            ),
            Self::BpfLinker => format!(
                "no bpf-linker; run `cargo xtask setup`, or:\n\n    \
                 cargo install bpf-linker --version {BPF_LINKER_VERSION} --locked --root target/tools"
            ),
        }
    }
}

/// A rustc for the BPF target.
#[derive(Debug, Clone, Copy)]
enum Compiler {
    /// Way 1.
    Nightly,
    /// Way 2.
    Distribution,
}

impl Compiler {
    fn find(workspace: &Workspace) -> Option<Self> {
        let mut rustup = workspace.command("rustup");
        rustup.args(["component", "list", "--installed", "--toolchain", "nightly"]);
        if output(rustup).is_ok_and(|list| list.lines().any(|component| component == "rust-src")) {
            return Some(Self::Nightly);
        }
        let mut rustc = workspace.command(DISTRIBUTION_RUSTC);
        rustc.args(["--print", "target-libdir", "--target", BPF_TARGET]);
        let libraries = fs::read_dir(output(rustc).ok()?.trim()).ok()?;
        let is_core = |name: OsString| name.to_string_lossy().starts_with("libcore-");
        libraries.flatten().any(|file| is_core(file.file_name())).then_some(Self::Distribution)
    }

    /// Its version and LLVM's: what an error in the object's code generation has to be looked up by.
    fn describe(self, workspace: &Workspace) -> Result<String> {
        let mut rustc = self.rustc(workspace);
        rustc.arg("-vV");
        let version = output(rustc)?;
        let field = |name| version.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("unknown");
        let origin = match self {
            Self::Nightly => "rustup's nightly with rust-src",
            Self::Distribution => DISTRIBUTION_RUSTC,
        };
        Ok(format!("{origin} {} with LLVM {}", field("release: "), field("LLVM version: ")))
    }

    fn rustc(self, workspace: &Workspace) -> Command {
        match self {
            Self::Nightly => on_nightly(workspace, "rustc"),
            Self::Distribution => workspace.command(DISTRIBUTION_RUSTC),
        }
    }

    /// `cargo build`, with the LLVM that bpf-linker shall load first in the search path.
    fn cargo_build(self, workspace: &Workspace) -> Result<Command> {
        let mut rustc = self.rustc(workspace);
        rustc.args(["--print", "sysroot"]);
        let lib = Path::new(output(rustc)?.trim()).join("lib");
        Ok(match self {
            Self::Nightly => {
                let mut cargo = on_nightly(workspace, "cargo");
                cargo.args(["build", "-Zbuild-std=core"]).env_remove("RUSTC").env("LD_LIBRARY_PATH", lib);
                cargo
            }
            Self::Distribution => {
                let mut cargo = workspace.cargo();
                cargo
                    .arg("build")
                    .env("RUSTC", DISTRIBUTION_RUSTC)
                    // aya-ebpf uses inline assembly for BPF, which is unstable, and this rustc is a stable one.
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("LD_LIBRARY_PATH", lib.join(format!("{ARCH}-linux-gnu")));
                cargo
            }
        })
    }
}

fn on_nightly(workspace: &Workspace, program: &str) -> Command {
    let mut rustup = workspace.command("rustup");
    rustup.args(["run", "nightly", program]);
    rustup
}

/// `bpf_target_arch` tells aya-ebpf whose kernel's structures to use; bpf-linker writes BTF only when told to.
fn rustflags() -> String {
    let arch = format!("--cfg=bpf_target_arch=\"{ARCH}\"");
    [arch.as_str(), "-Cdebuginfo=2", "-Clink-arg=--btf"].join("\x1f")
}

fn find_linker(workspace: &Workspace) -> Option<PathBuf> {
    let own = workspace.tools().join("bin/bpf-linker");
    own.is_file().then_some(own).or_else(|| find_program("bpf-linker"))
}

fn path_with(linker: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = linker.parent().map(Path::to_owned).into_iter().chain(env::split_paths(&path));
    Ok(env::join_paths(folders)?)
}

fn output(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// A panic path would be an endless loop to the verifier, which then names an instruction instead of a source line.
fn refuse_panics(object: &[u8]) -> Result<()> {
    let names = symbol_names(object).context("the eBPF object is not a 64-bit little-endian ELF file")?;
    let panics: Vec<_> = names.iter().filter(|name| name.contains("panicking")).collect();
    ensure!(
        panics.is_empty(),
        "the eBPF programs can panic, which the kernel's verifier refuses: {panics:?}"
    );
    Ok(())
}

/// The strings of an ELF file's symbol table; offsets as in elf(5).
fn symbol_names(elf: &[u8]) -> Option<Vec<String>> {
    const SYMTAB: u64 = 2;
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |at: usize, len: usize| -> Option<u64> {
        Some(elf.get(at..at + len)?.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    };
    let index = |at: usize, len: usize| usize::try_from(number(at, len)?).ok();
    let (headers, size, count) = (index(0x28, 8)?, index(0x3a, 2)?, index(0x3c, 2)?);
    let header = |section: usize| headers + section * size;
    let symtab = (0..count).map(header).find(|at| number(at + 4, 4) == Some(SYMTAB))?;
    let strtab = header(index(symtab + 0x28, 4)?);
    let start = index(strtab + 0x18, 8)?;
    let strings = elf.get(start..start + index(strtab + 0x20, 8)?)?;
    Some(strings.split(|byte| *byte == 0).map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_symbols_of_this_very_program_are_found() {
        let elf = fs::read(env::current_exe().unwrap()).unwrap();
        let names = symbol_names(&elf).unwrap();
        assert!(names.iter().any(|name| name.contains("the_symbols_of_this_very_program_are_found")));
    }

    #[test]
    fn an_object_that_can_panic_is_refused_by_the_name_of_the_symbol() {
        let elf = fs::read(env::current_exe().unwrap()).unwrap();
        let error = refuse_panics(&elf).unwrap_err().to_string();
        assert!(error.contains("panicking"), "{error}");
    }

    #[test]
    fn what_is_not_elf_is_refused() {
        for bytes in [&b""[..], b"\x7fELF\x02\x01", b"#!/bin/sh"] {
            assert!(refuse_panics(bytes).is_err());
        }
    }
}
