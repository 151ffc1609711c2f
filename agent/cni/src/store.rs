//! The reservations on disk: one file for each network, written whole, under a lock.
//!
//! A reservation holds for as long as the machine runs: pods end with it. So the file is named for the boot, and there
//! is nothing to bring safely to the disk: a process that dies leaves the file as it was before or as it is after
//! (rename), and after a power cut it is a file of another boot, whatever it holds, and is removed unread. No fsync
//! stands in the way of an ADD, and no address leaks by a reboot.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::addresses::Reservations;
use crate::config::Network;
use crate::error::Error;

/// A UUID that the kernel makes at its start.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The reservations of a network, locked until dropped: calls wait for each other, each for a fraction of a millisecond.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    _lock: Flock<File>,
    /// As read, and as changed since.
    pub(crate) reservations: Reservations,
}

impl Store {
    /// Waits for the lock, and reads what is reserved.
    pub(crate) fn open(network: &Network) -> Result<Self, Error> {
        let folder = network.data_directory.join(&network.name);
        fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        let lock = lock(&folder.join("lock"))?;
        let boot = fs::read_to_string(BOOT_ID).map_err(Error::file("read", BOOT_ID))?;
        let path = folder.join(format!("{}.json", boot.trim()));
        let reservations = match read(&path)? {
            Some(reservations) => reservations,
            None => {
                remove_other_boots(&folder, &path)?;
                Reservations::default()
            }
        };
        Ok(Self { path, _lock: lock, reservations })
    }

    /// Keeps the reservations as they are now. The file is replaced at once, or not at all.
    pub(crate) fn save(&self) -> Result<(), Error> {
        let text = serde_json::to_vec(&self.reservations).unwrap_or_default();
        let new = self.path.with_extension("new");
        let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
        let written = options.and_then(|mut file| file.write_all(&text));
        written.map_err(Error::file("write", &new))?;
        fs::rename(&new, &self.path).map_err(Error::file("write", &self.path))
    }
}

fn lock(path: &Path) -> Result<Flock<File>, Error> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let mut file = file.map_err(Error::file("open", path))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EINTR)) => file = again,
            Err((_, errno)) => return Err(Error::file("lock", path)(errno.into())),
        }
    }
}

fn read(path: &Path) -> Result<Option<Reservations>, Error> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("read", path)(error)),
    };
    let reservations = serde_json::from_slice(&text);
    reservations
        .map(Some)
        .map_err(|error| Error::Decode { what: path.display().to_string(), cause: error.to_string() })
}

/// Whatever held before the machine was started again.
fn remove_other_boots(folder: &Path, current: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::file("list", folder))? {
        let path = entry.map_err(Error::file("list", folder))?.path();
        let is_state = path.extension().is_some_and(|extension| extension == "json" || extension == "new");
        if is_state && path != current {
            fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::Attachment;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("podway-cni-store-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }

        fn store(&self) -> Result<Store, Error> {
            let mut network = Network::read(br#"{"name":"n"}"#, Vec::new()).unwrap();
            network.data_directory = self.0.clone();
            Store::open(&network)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn reserve(store: &mut Store) {
        let attachment = Attachment { container: "a".into(), ifname: "eth0".into() };
        store.reservations.reserve(&attachment, &["10.0.0.0/24".parse().unwrap()], &[]).unwrap();
    }

    #[test]
    fn n11_what_is_saved_is_there_for_the_next_call() {
        let folder = Folder::new("saved");
        let mut store = folder.store().unwrap();
        reserve(&mut store);
        store.save().unwrap();
        let reservations = store.reservations.clone();
        drop(store);
        assert_eq!(folder.store().unwrap().reservations, reservations);
    }

    #[test]
    fn n11_a_reboot_frees_all_addresses_even_of_a_torn_file() {
        let folder = Folder::new("reboot");
        let store = folder.store().unwrap();
        let of_another_boot = store.path.with_file_name("2b1c5e9a-0000-4000-8000-000000000000.json");
        fs::write(&of_another_boot, b"\0\0\0").unwrap();
        drop(store);
        assert_eq!(folder.store().unwrap().reservations, Reservations::default());
        assert!(!of_another_boot.exists());
    }

    #[test]
    fn n11_a_file_of_this_boot_that_is_broken_is_an_error_that_names_it() {
        let folder = Folder::new("broken");
        let store = folder.store().unwrap();
        fs::write(&store.path, "{").unwrap();
        let path = store.path.display().to_string();
        drop(store);
        let error = folder.store().unwrap_err();
        assert!(error.to_string().contains(&path), "{error}");
    }

    #[test]
    fn n11_what_a_killed_call_began_to_write_is_passed_over() {
        let folder = Folder::new("killed");
        let mut store = folder.store().unwrap();
        reserve(&mut store);
        store.save().unwrap();
        fs::write(store.path.with_extension("new"), "{\"res").unwrap();
        drop(store);
        let store = folder.store().unwrap();
        assert_eq!(store.reservations.attachments().count(), 1);
        store.save().unwrap();
    }
}
