//! What to do about a failure.

/// What the caller of a failed kernel operation should do. The kernel crates class their errors by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// The same again, later.
    Retry,
    /// Look at the kernel anew, then write what differs: our picture of it may be wrong.
    Resync,
    /// Nothing helps but an operator.
    Fatal,
}
