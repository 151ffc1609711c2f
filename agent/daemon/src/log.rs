//! Structured logs on standard error.

use anyhow::{Context, Result, bail};
use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// What a library would say again, at every attempt and in its own words. A filter that names it takes precedence.
const SAID_BY_US: &str = "kube_runtime::watcher=off";

/// Starts logging; lines go to standard error, coloured on a terminal.
pub(crate) fn start(config: &LogConfig) -> Result<()> {
    let level = match config.level.as_str() {
        "" => "info",
        // A word of its own that is no level would be the name of a module, and nothing would be logged at all.
        word if word.chars().all(char::is_alphanumeric)
            && word.parse::<tracing::Level>().is_err()
            && word != "off" =>
        {
            bail!(
                "log.level: {word} is not error, warn, info, debug, trace, off or a filter such as info,kube=debug"
            )
        }
        level => level,
    };
    let filter = EnvFilter::try_new(format!("{SAID_BY_US},{level}"))
        .with_context(|| format!("log.level: {level:?}"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.format {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}
