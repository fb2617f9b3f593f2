//! The table that a lab can file: Markdown that reads as plain text, or JSON.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use miaf_agent::time::Timestamp;
use serde_json::json;

use crate::Failure;
use crate::bench::Bench;
use crate::checks::{Outcome, Verdict};
use crate::timings::Timing;

/// What was tried, with what, when: lines of a name and a text.
pub(crate) struct Heading(Vec<(&'static str, String)>);

impl Heading {
    pub(crate) fn new(bench: &Bench, tpm: Vec<(&'static str, String)>, date: Option<String>) -> Self {
        let date = date.unwrap_or_else(|| Timestamp::from(SystemTime::now()).to_string());
        let mut lines = tpm;
        lines.extend([
            ("connection", bench.tcti.to_string()),
            ("kernel", first_line("/proc/sys/kernel/osrelease")),
            ("machine", machine()),
            ("agent", format!("miaf-agent {}", env!("CARGO_PKG_VERSION"))),
            ("date", date),
        ]);
        Self(lines)
    }
}

fn machine() -> String {
    let dmi = ["/sys/class/dmi/id/sys_vendor", "/sys/class/dmi/id/product_name"].map(first_line).join(" ");
    [dmi.trim().to_owned(), first_line("/proc/device-tree/model"), "unknown".into()]
        .into_iter()
        .find(|name| !name.is_empty())
        .unwrap_or_default()
}

fn first_line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim_matches(['\0', ' ']).to_owned()
}

/// How the checks fared.
pub(crate) struct Report {
    heading: Heading,
    rows: Vec<Row>,
    /// How long things took.
    pub(crate) timings: Vec<Timing>,
}

struct Row {
    name: &'static str,
    result: &'static str,
    figure: String,
}

const PASSED: &str = "passed";
const FAILED: &str = "failed";
const NOT_AVAILABLE: &str = "not available";

impl Report {
    pub(crate) fn new(heading: Heading) -> Self {
        Self { heading, rows: Vec::new(), timings: Vec::new() }
    }

    /// Adds a line, and prints it at once, for a slow TPM.
    pub(crate) fn add(&mut self, name: &'static str, outcome: Outcome) {
        let (result, figure) = match outcome {
            Ok(Verdict::Passed(figure)) => (PASSED, figure),
            Ok(Verdict::NotAvailable(why)) => (NOT_AVAILABLE, why),
            Err(error) => (FAILED, error.to_string()),
        };
        if io::stderr().is_terminal() {
            eprintln!("{name}: {result}");
        }
        self.rows.push(Row { name, result, figure });
    }

    /// How many checks have failed.
    pub(crate) fn failed(&self) -> usize {
        self.count(FAILED)
    }

    fn count(&self, result: &str) -> usize {
        self.rows.iter().filter(|row| row.result == result).count()
    }

    pub(crate) fn markdown(&self) -> String {
        let heading = self.heading.0.iter().map(|(name, text)| [(*name).into(), text.clone()]);
        let rows = self.rows.iter().map(|row| [row.name.into(), row.result.into(), row.figure.clone()]);
        let timings = self.timings.iter().map(|timing| {
            let [p50, p99, max] = [50, 99, 100].map(|percent| format!("{:.2}", timing.percentile(percent)));
            [timing.step.into(), timing.rounds().to_string(), p50, p99, max]
        });
        let mut text = String::from("# The agent's keys on this TPM\n\n");
        text.push_str(&table(["what", ""], heading));
        text.push('\n');
        text.push_str(&table(["check", "result", "figure, or why"], rows));
        if !self.timings.is_empty() {
            text.push('\n');
            text.push_str(&table(["time in ms", "rounds", "p50", "p99", "max"], timings));
        }
        let (passed, failed, skipped) = (self.count(PASSED), self.failed(), self.count(NOT_AVAILABLE));
        text.push_str(&format!("\n{passed} passed, {failed} failed, {skipped} skipped\n"));
        text
    }

    pub(crate) fn json(&self) -> String {
        let heading: serde_json::Map<String, serde_json::Value> =
            self.heading.0.iter().map(|(name, text)| ((*name).to_owned(), json!(text))).collect();
        let checks: Vec<_> = self
            .rows
            .iter()
            .map(|row| json!({ "check": row.name, "result": row.result, "figure": row.figure }))
            .collect();
        let timings: Vec<_> = self
            .timings
            .iter()
            .map(|timing| {
                json!({
                    "step": timing.step,
                    "rounds": timing.rounds(),
                    "p50Milliseconds": timing.percentile(50),
                    "p99Milliseconds": timing.percentile(99),
                    "maxMilliseconds": timing.percentile(100),
                })
            })
            .collect();
        let report = json!({
            "heading": heading,
            "checks": checks,
            "timings": timings,
            "passed": self.count(PASSED),
            "failed": self.failed(),
            "skipped": self.count(NOT_AVAILABLE),
        });
        format!("{report:#}\n")
    }
}

/// A table whose columns stand under each other, but for the last.
fn table<const N: usize>(titles: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let titles = titles.map(String::from);
    // A line break or a bar would end a cell of the table.
    let rows: Vec<_> =
        rows.map(|row| row.map(|cell| cell.replace(['\n', '\r'], " ").replace('|', "/"))).collect();
    let mut widths = titles.each_ref().map(|title| title.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    if let Some(last) = widths.last_mut() {
        *last = 3;
    }
    let line = |cells: &[String; N]| {
        let padded: Vec<String> =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("| {} |\n", padded.join(" | "))
    };
    let rule = widths.map(|width| "-".repeat(width));
    [line(&titles), line(&rule)].into_iter().chain(rows.iter().map(line)).collect()
}

/// Where the report goes: to the terminal, and to a file if one is named.
pub(crate) struct Destination(Option<(PathBuf, File)>);

impl Destination {
    /// Opens the file at once: an error must come before the checks, not after the last one.
    pub(crate) fn open(file: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = file else { return Ok(Self(None)) };
        let file = File::create(path).map_err(|error| cannot_write(path, &error))?;
        Ok(Self(Some((path.to_owned(), file))))
    }

    pub(crate) fn write(self, report: &str) -> Result<(), Failure> {
        if let Some((path, mut file)) = self.0 {
            file.write_all(report.as_bytes()).map_err(|error| cannot_write(&path, &error))?;
        }
        let printed = io::stdout().write_all(report.as_bytes());
        printed.map_err(|error| format!("cannot print the report: {error}").into())
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    format!("cannot write the report to {}: {error}", path.display()).into()
}
