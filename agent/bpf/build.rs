//! Embeds the eBPF programs: target/ebpf/podway.bpf.o, or the file that `PODWAY_BPF_OBJECT` names.
//!
//! Without them the crate builds all the same, so that no eBPF toolchain is needed for `cargo build`, and says at run
//! time what is missing.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs, io};

const OVERRIDE: &str = "PODWAY_BPF_OBJECT";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let (object, bytes) = match env::var_os(OVERRIDE) {
        Some(path) => named(path.into())?,
        None => built()?,
    };
    println!("cargo::rerun-if-changed={}", object.display());
    fs::write(Path::new(&required("OUT_DIR")).join("podway.bpf.o"), bytes)
}

fn named(path: PathBuf) -> io::Result<(PathBuf, Vec<u8>)> {
    let named = |error| io::Error::other(format!("{OVERRIDE}={}: {error}", path.display()));
    let path = path.canonicalize().map_err(named)?;
    let bytes = fs::read(&path)?;
    Ok((path, bytes))
}

fn built() -> io::Result<(PathBuf, Vec<u8>)> {
    let path = Path::new(&required("CARGO_MANIFEST_DIR")).join("../../target/ebpf/podway.bpf.o");
    // Cargo takes a watched file that is absent for changed, and would build this crate and the daemon every time.
    // Where no file can be made that is what happens.
    if place_empty(&path).is_err() {
        println!("cargo::warning=the eBPF programs are not built, and {} cannot be written", path.display());
    }
    let bytes = fs::read(&path).unwrap_or_default();
    Ok((path, bytes))
}

fn place_empty(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    // Older than this run, or Cargo would take it for changed once.
    fs::File::create_new(path)?.set_modified(SystemTime::UNIX_EPOCH)
}

fn required(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("{name}, which Cargo sets: {error}"))
}
