//! What is being measured now: a spinner for a person, a line for a log.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Ten pictures a second look smooth and cost nothing.
const TICK: Duration = Duration::from_millis(100);

/// Does `work` while its title stands at the terminal.
pub(crate) fn during<T>(title: &str, work: impl FnOnce() -> T) -> T {
    if !io::stderr().is_terminal() {
        eprintln!("==> {title}");
        return work();
    }
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
    let spinner = ProgressBar::new_spinner().with_message(title.to_owned());
    spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    spinner.enable_steady_tick(TICK);
    let result = work();
    spinner.finish_and_clear();
    result
}
