//! What the demo prints: steps, tables, bars, timelines, and a spinner while something takes time.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Error, Result};
use console::{Color, Style, measure_text_width, style, user_attended_stderr};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cluster::SourceKind;
use crate::words::{breakable, time, wrap};

/// Fits a terminal of 110 columns with the margin.
const TEXT_WIDTH: usize = 100;
const MARGIN: &str = "    ";
/// A bar for everything there is; leaves room for names and numbers.
const BAR_WIDTH: usize = 60;

/// The terminal, and which step it shows.
pub(crate) struct Screen {
    steps: usize,
    step: Cell<usize>,
    title: Cell<&'static str>,
}

impl Screen {
    pub(crate) fn new(steps: usize) -> Self {
        Self { steps, step: Cell::new(0), title: Cell::new("") }
    }

    /// What is about to be shown.
    pub(crate) fn title(&self, source: SourceKind) {
        let source = match source {
            SourceKind::Directory => "a folder of Kubernetes manifests",
            SourceKind::Kube => "a real kube-apiserver with etcd",
        };
        println!();
        println!("{}", style("podway: one daemon per node, in place of kube-proxy and flannel").bold());
        let text = format!(
            "A small web shop on three nodes, described by manifests/demo, read by podway from {source}. Each node and \
             each pod is a network namespace of this machine; daemons, rules, routes and packets are real."
        );
        wrap(&text, TEXT_WIDTH + MARGIN.len()).iter().for_each(|line| println!("{line}"));
    }

    /// Begins a step: its title, then a sentence that says what is shown and why it matters.
    pub(crate) fn step(&self, title: &'static str, why: &str) {
        self.step.set(self.step.get() + 1);
        self.title.set(title);
        let number = format!("{}/{}", self.step.get(), self.steps);
        println!("\n{} {}", style(number).cyan(), style(title).cyan().bold());
        wrap(why, TEXT_WIDTH).iter().for_each(|line| println!("{MARGIN}{}", style(line).dim()));
    }

    /// Names the step in an error.
    pub(crate) fn in_step(&self, result: Result<()>) -> Result<()> {
        result.with_context(|| format!("step {} of {}, {}", self.step.get(), self.steps, self.title.get()))
    }

    pub(crate) fn line(&self, text: impl AsRef<str>) {
        println!("{MARGIN}{}", breakable(text.as_ref()));
    }

    /// Something that was checked, and held.
    pub(crate) fn held(&self, text: impl AsRef<str>) {
        let mut sign = style("✓").green().bold().to_string();
        for line in wrap(text.as_ref(), TEXT_WIDTH - 2) {
            println!("{MARGIN}{sign} {line}");
            sign = " ".to_owned();
        }
    }

    /// Rows under a heading, in columns as wide as they need.
    pub(crate) fn table<const N: usize>(&self, heading: [&str; N], rows: &[[String; N]]) {
        let mut widths = heading.map(measure_text_width);
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(measure_text_width(cell));
            }
        }
        let line = |cells: [&str; N]| {
            let cells = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.line(style(line(heading)).dim().to_string());
        for row in rows {
            self.line(line(row.each_ref().map(String::as_str)));
        }
    }

    /// A bar for each count, as long as its share of all.
    pub(crate) fn bars(&self, counts: &BTreeMap<String, usize>) {
        let total: usize = counts.values().sum();
        let width = counts.keys().map(String::len).max().unwrap_or(0);
        for (number, (name, count)) in counts.iter().enumerate() {
            let bar = "█".repeat((count * BAR_WIDTH).div_ceil(total.max(1)));
            self.line(format!("  {name:<width$}  {} {count}", color(number).apply_to(bar)));
        }
    }

    /// A row of cells for each name, filled where it answered, and what happened when, by the number of its cell.
    pub(crate) fn timeline(&self, rows: &[(String, Vec<bool>)], marks: &[(usize, &str)]) {
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (number, (name, cells)) in rows.iter().enumerate() {
            let cells: String = cells.iter().map(|filled| if *filled { '█' } else { '·' }).collect();
            let color = if name == "failed" { Style::new().red() } else { color(number) };
            self.line(format!("  {name:<width$}  {}", color.apply_to(cells)));
        }
        for (cell, what) in marks {
            self.line(format!("  {:width$}  {:cell$}{} {what}", "", "", style("▲").bold()));
        }
    }

    /// Shows that something goes on until `work` is done.
    pub(crate) fn wait<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if !user_attended_stderr() {
            self.line(format!("... {what}"));
            return work();
        }
        let spinner = spinner(what);
        let result = work();
        spinner.finish_and_clear();
        result
    }

    /// The last lines, when all steps held.
    pub(crate) fn finish(&self, took: Duration, kept: bool) {
        let rest = if kept { "It stays up." } else { "Everything is removed again." };
        let took = breakable(&time(took));
        println!("\n{} {} steps held, in {took}. {rest}", style("✓").green().bold(), self.steps);
    }
}

/// The message of a demo that failed.
pub(crate) fn failed(error: &Error, hint: Option<&str>) {
    eprintln!("\n{} {error:#}", style("✗").for_stderr().red().bold());
    if let Some(hint) = hint {
        eprintln!("  {hint}");
    }
}

fn color(number: usize) -> Style {
    const COLORS: [Color; 4] = [Color::Blue, Color::Magenta, Color::Yellow, Color::Cyan];
    Style::new().fg(COLORS[number % COLORS.len()])
}

fn spinner(what: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template("    {spinner:.cyan} {msg}  {elapsed:.dim}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
