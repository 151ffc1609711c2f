//! What can go wrong with nft.

use std::io;

use podway_reconcile::Recovery;

/// A failure of a call to nft. A transaction that failed has changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no nft program.
    #[error("the nft program is not to be found: install the package nftables (nft 1.0.6 or newer)")]
    Missing,
    /// nft could not be started or talked to.
    #[error("nft {call}: {cause}")]
    Io {
        /// Its arguments.
        call: String,
        /// The system's word on it.
        cause: io::Error,
    },
    /// nft or the kernel refused.
    #[error("nft {call} was refused: {message}")]
    Refused {
        /// Its arguments.
        call: String,
        /// What nft printed.
        message: String,
    },
    /// The kernel does not tell of changes.
    #[error("listening to changes of nftables: {cause}")]
    Watch {
        /// Its word on it.
        cause: io::Error,
    },
    /// nft printed what we cannot read.
    #[error("nft {call} printed something unexpected: {message}")]
    Unreadable {
        /// Its arguments.
        call: String,
        /// Where reading ended.
        message: String,
    },
}

impl Error {
    /// What to do about it.
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::Missing => Recovery::Fatal,
            Self::Io { .. } | Self::Watch { .. } => Recovery::Retry,
            Self::Refused { .. } | Self::Unreadable { .. } => Recovery::Resync,
        }
    }
}
