//! A folder of files that are replaced atomically, as a daemon with `source: directory` reads them.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A folder inside the lab's own; goes away with the lab.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file under another name and renames it over `name`, so that a reader sees the old or the new text.
    pub fn write(&self, name: &str, text: impl Display) -> Result<PathBuf> {
        let target = self.path.join(name);
        let draft = self.path.join(format!(".{name}.draft"));
        fs::write(&draft, text.to_string()).with_context(|| format!("write {}", draft.display()))?;
        fs::rename(&draft, &target).with_context(|| format!("rename to {}", target.display()))?;
        Ok(target)
    }

    /// Deletes a file.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }
}
