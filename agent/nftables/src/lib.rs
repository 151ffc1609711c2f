//! The nftables schema, its rows, and the one door through which `nft` is run.
//!
//! Two tables a half: [`Services`] keeps `ip podway` and `ip6 podway`, [`Network`] keeps `inet podway-network`. Their
//! rules are fixed texts in `schema/`; what varies with the cluster is elements, planned and compared as typed keys
//! and values, so no JSON gets out of here and no text is ever compared. [`Forwarding`] puts rules into other
//! programs' chains where they would drop pods' packets. Only [`NftProcess`] changes the kernel; [`Watch`] listens to
//! what others change.

mod adopt;
mod chains;
mod children;
mod element;
mod error;
mod fake;
mod forward;
mod json;
mod listing;
mod network;
mod process;
mod schema;
mod services;
mod transaction;
mod watch;

pub use error::Error;
pub use fake::FakeNft;
pub use forward::{ChainName, ForwardProblem, ForwardReport, Forwarding};
pub use network::{Network, NetworkRows};
pub use process::{Nft, NftProcess};
pub use schema::{DEFAULT_MARK, Family, Ports};
pub use services::Services;
pub use watch::{Damage, Watch};
