//! A step: a child process with a title, whose output goes to a log while the terminal shows that it lives.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, Write},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::workspace::Workspace;

/// Where nobody sees a spinner (CI), a line at this pace says that the step goes on.
const LIVE_LINE_EVERY: Duration = Duration::from_secs(15);
/// Ten pictures a second look smooth and cost nothing.
const SPINNER_EVERY: Duration = Duration::from_millis(100);
/// Enough of a failed compiler's or package manager's output to see the cause.
const TAIL_LINES: usize = 40;

/// Runs `command` to its end; an exit code other than 0 is an error that follows the log's last lines.
///
/// `title` is what the user reads, with the expected time where that is more than a minute; its first words name
/// the log.
pub(crate) fn run(workspace: &Workspace, title: &str, command: Command) -> Result<()> {
    let outcome = run_to_end(workspace, title, command)?;
    if outcome.status.success() {
        return Ok(());
    }
    print_tail(&outcome.log)?;
    bail!("{}: {}; the whole output is in {}", name(title), outcome.status, outcome.log.display());
}

/// Like [`run`], for a command whose failure has a way out: says whether it succeeded.
pub(crate) fn attempt(workspace: &Workspace, title: &str, command: Command) -> Result<bool> {
    Ok(run_to_end(workspace, title, command)?.status.success())
}

/// Prints a line in the form of a step's heading, for what is over at once.
pub(crate) fn say(line: &str) {
    println!("==> {line}");
}

struct Outcome {
    status: ExitStatus,
    log: PathBuf,
}

fn run_to_end(workspace: &Workspace, title: &str, command: Command) -> Result<Outcome> {
    let log = workspace.logs()?.join(format!("{}.log", slug(title)));
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let program = command.get_program().to_string_lossy().into_owned();
    let display = Display::start(title);
    let status =
        supervise(command, file, &display).with_context(|| format!("{title}: cannot run {program}"))?;
    display.finish(status.success());
    Ok(Outcome { status, log })
}

/// Starts the child with both outputs in one pipe, and follows it.
fn supervise(mut command: Command, log: File, display: &Display) -> io::Result<ExitStatus> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    drop(command); // it holds the pipe's writing end: the reader would never see the end
    let (lines, received) = mpsc::channel();
    let copier = thread::spawn(move || copy_lines(BufReader::new(reader), log, &lines));
    display.follow(&received);
    let status = child.wait()?;
    match copier.join() {
        Ok(copied) => copied.map(|()| status),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn copy_lines(mut from: impl BufRead, mut log: File, lines: &Sender<String>) -> io::Result<()> {
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        log.write_all(&line)?;
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if !text.is_empty() {
            // The receiver goes only when this thread is done.
            let _ = lines.send(text);
        }
        line.clear();
    }
    Ok(())
}

/// How a running step is shown: a spinner for a person, lines for a log.
struct Display {
    title: String,
    started: Instant,
    spinner: Option<ProgressBar>,
}

impl Display {
    fn start(title: &str) -> Self {
        let spinner = io::stderr().is_terminal().then(|| spinner(title));
        if spinner.is_none() {
            say(title);
        }
        Self { title: title.to_owned(), started: Instant::now(), spinner }
    }

    /// Shows lines as they arrive, until the child has closed its output.
    fn follow(&self, lines: &Receiver<String>) {
        let mut last = String::new();
        let mut next_live_line = self.started + LIVE_LINE_EVERY;
        loop {
            match lines.recv_timeout(next_live_line.saturating_duration_since(Instant::now())) {
                Ok(line) => last = line,
                Err(RecvTimeoutError::Timeout) => {
                    self.print_live_line(&last);
                    next_live_line += LIVE_LINE_EVERY;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if let Some(spinner) = &self.spinner {
                spinner.set_message(last.clone());
            }
        }
    }

    fn print_live_line(&self, last: &str) {
        if self.spinner.is_none() {
            println!("    {:>4} s  {last}", self.started.elapsed().as_secs());
        }
    }

    fn finish(self, success: bool) {
        let seconds = self.started.elapsed().as_secs_f32();
        match self.spinner {
            Some(spinner) => {
                spinner.finish_and_clear();
                let sign = if success { "\x1b[32m✓\x1b[0m" } else { "\x1b[31m✗\x1b[0m" };
                eprintln!("{sign} {}  {seconds:.1} s", self.title);
            }
            None => println!("    {} after {seconds:.1} s", if success { "done" } else { "failed" }),
        }
    }
}

fn spinner(title: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner:.cyan} {prefix}  {elapsed}  {wide_msg:.dim}");
    let spinner = ProgressBar::new_spinner().with_prefix(title.to_owned());
    if let Ok(style) = style {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(SPINNER_EVERY);
    spinner
}

/// The title without its remark in parentheses.
fn name(title: &str) -> &str {
    title.split_once(" (").map_or(title, |(name, _)| name)
}

/// The name of a step, as a file name.
fn slug(title: &str) -> String {
    let words = name(title).split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}

fn print_tail(log: &Path) -> Result<()> {
    let lines = BufReader::new(File::open(log)?);
    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    for line in lines.split(b'\n') {
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(String::from_utf8_lossy(&line?).into_owned());
    }
    for line in tail {
        eprintln!("    {line}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_named_by_the_title_without_its_remark() {
        assert_eq!(slug("Building flannel 0.28 (about 1 min)"), "building-flannel-0-28");
    }

    #[test]
    fn both_outputs_of_a_child_reach_its_log_and_its_exit_code_the_caller() {
        let root = std::env::temp_dir().join(format!("podway-xtask-step-{}", std::process::id()));
        let workspace = Workspace { root: root.clone() };
        std::fs::create_dir_all(&root).unwrap();
        let shell = |script: &str| {
            let mut command = workspace.command("sh");
            command.args(["-c", script]);
            command
        };

        let succeeded = attempt(&workspace, "Both outputs", shell("echo to out; echo to err >&2")).unwrap();
        let failed = run(&workspace, "A failure", shell("echo the cause; exit 3")).unwrap_err().to_string();

        let log = std::fs::read_to_string(workspace.logs().unwrap().join("both-outputs.log")).unwrap();
        std::fs::remove_dir_all(&root).unwrap();
        assert!(succeeded);
        assert_eq!(log, "to out\nto err\n");
        assert!(failed.contains("A failure: exit status: 3"), "{failed}");
    }
}
