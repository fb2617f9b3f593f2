//! docs/fleet.md from its template, and the plots beside it. The same figures give the same bytes.

use std::fmt::Write as _;
use std::path::Path;

use crate::catalogue::{Scenario, Table};
use crate::outcome::Outcome;

const TEMPLATE: &str = include_str!("page.md");

pub(crate) fn write(scenarios: &[Scenario], outcomes: &[Outcome]) -> std::io::Result<()> {
    let docs = Path::new("docs");
    let told: Vec<_> = scenarios.iter().zip(outcomes).collect();
    let mut page = TEMPLATE.to_owned();
    let mut put = |name: &str, text: &str| page = page.replace(&format!("{{{{{name}}}}}"), text);
    put("large", &large(&told));
    put("sweep", &small(&told, Table::Sweep));
    put("five a day", &small(&told, Table::FiveADay));
    for (scenario, outcome) in &told {
        for (name, figure) in &outcome.figures {
            put(&format!("{}: {name}", scenario.name), figure);
        }
        for (name, figure) in ROW.iter().zip(outcome.row.cells()) {
            put(&format!("{}: {name}", scenario.name), figure);
        }
    }
    assert!(!page.contains("{{"), "the template asks for a figure that nothing measures");
    std::fs::write(docs.join("fleet.md"), page)?;
    std::fs::create_dir_all(docs.join("fleet"))?;
    for (file, plot) in outcomes.iter().flat_map(|outcome| &outcome.plots) {
        std::fs::write(docs.join("fleet").join(file), plot)?;
    }
    Ok(())
}

/// As the template calls the columns of the large table.
const ROW: [&str; 12] = [
    "lifetime",
    "refresh",
    "svids_mean",
    "svids_busiest",
    "refused",
    "above_until",
    "documents_mean",
    "documents_busiest",
    "away",
    "expired",
    "last_back",
    "peak_to_mean",
];

fn large(told: &[(&Scenario, &Outcome)]) -> String {
    let mut rows = String::new();
    for (scenario, outcome) in told.iter().filter(|(scenario, _)| scenario.table == Table::Large) {
        let _ = writeln!(rows, "| {} | {} |", scenario.name, outcome.row.cells().join(" | "));
    }
    rows.trim_end().to_owned()
}

fn small(told: &[(&Scenario, &Outcome)], table: Table) -> String {
    let of_it = told.iter().filter(|(scenario, _)| scenario.table == table);
    let rows: Vec<_> = of_it.map(|(_, outcome)| format!("| {} |", outcome.cells.join(" | "))).collect();
    rows.join("\n")
}
