//! What a log complains of.

/// The lines of a podway's log that somebody should look at.
pub fn complaints(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect()
}
