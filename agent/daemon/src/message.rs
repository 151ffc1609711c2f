//! An error as one line.

/// The error and its causes, outermost first. Errors of libraries often repeat their cause in their own text: each is
/// said once.
pub(crate) fn of(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    #[test]
    fn what_a_cause_has_said_is_not_repeated() {
        let cause = anyhow!("No such file").context("cannot read /x: No such file").context("config");
        assert_eq!(super::of(&cause), "config: cannot read /x: No such file");
    }
}
