//! The manual pages say what the program does, and name what there is.

#![allow(clippy::indexing_slicing, reason = "a test ends where something is missing")]

mod common;

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::Path;

use clap::CommandFactory as _;
use common::{Documents, Outcome, repository};
use miaf_agent::cli::Cli;
use miaf_agent::config::Config;

/// A manual page as text: without escapes and font changes.
fn plain(page: &Path) -> Result<String, Box<dyn Error>> {
    let mut text = fs::read_to_string(page).map_err(|e| format!("{}: {e}", page.display()))?;
    for (roff, plain) in [("\\fB", ""), ("\\fI", ""), ("\\fR", ""), ("\\-", "-"), ("\\&", "")] {
        text = text.replace(roff, plain);
    }
    Ok(text)
}

fn program() -> clap::Command {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    program
}

#[test]
fn every_command_has_a_page_with_all_sections() -> Outcome {
    let documents = Documents::make()?;
    let directory = documents.share().join("man/man1");
    let program = program();
    for command in [&program].into_iter().chain(program.get_subcommands()) {
        let name = command.get_display_name().unwrap_or(command.get_name());
        let page = plain(&directory.join(format!("{name}.1")))?;
        assert!(page.contains(&format!(".TH {name} 1 2026-09-21 ")), "{name}: {page}");
        let mut rest = page.as_str();
        for section in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "FILES",
            "\"EXIT STATUS\"",
            "EXAMPLES",
            "\"SEE ALSO\"",
        ] {
            let unquoted = section.trim_matches('"');
            let found =
                [section, unquoted].iter().find_map(|title| rest.split_once(&format!(".SH {title}\n")));
            rest = found.ok_or_else(|| format!("{name}: no {section}, or not in this order"))?.1;
        }
        for other in rest.split(", ") {
            let other = other.trim().trim_end_matches([')', '\n']);
            let (title, section) = other.split_once('(').ok_or_else(|| format!("{name}: {other:?}"))?;
            let file = documents.share().join(format!("man/man{section}/{title}.{section}"));
            assert!(file.exists() || title == "systemd.service", "{name} refers to {title}({section})");
        }
    }
    Ok(())
}

#[test]
fn examples_are_command_lines_that_the_program_understands() -> Outcome {
    let documents = Documents::make()?;
    let mut seen = 0;
    for page in fs::read_dir(documents.share().join("man/man1"))? {
        let page = plain(&page?.path())?;
        for line in page.lines().filter_map(|line| line.strip_prefix("    miaf-agent ")) {
            for command in line.split("&& miaf-agent ") {
                let end = command.find(['|', '&', '>']).unwrap_or(command.len());
                let words = command[..end].split_whitespace();
                let parsed = program().try_get_matches_from(["miaf-agent"].into_iter().chain(words));
                assert!(parsed.is_ok(), "{line}: {parsed:?}");
                seen += 1;
            }
        }
    }
    assert!(seen >= 15, "only {seen} examples were found");
    Ok(())
}

#[test]
fn the_configuration_page_has_every_key() -> Outcome {
    let mut known = BTreeSet::new();
    keys_below("", &mut known)?;
    for key in ["state_dir", "mis.trust.ca_file", "identity.name", "identity.wfm.url"] {
        assert!(known.contains(key), "{key}: {known:?}");
    }

    let documents = Documents::make()?;
    let page = plain(&documents.share().join("man/man5/miaf-agent.toml.5"))?;
    let (_, keys) = page.split_once(".SH KEYS\n").ok_or("no section KEYS")?;
    let keys = keys.split(".SH ").next().unwrap_or_default();
    let on_page: BTreeSet<String> = keys
        .split(".TP\n")
        .filter_map(|entry| entry.lines().next())
        .flat_map(|terms| terms.split(", "))
        .filter(|term| !term.is_empty())
        .map(str::to_owned)
        .collect();
    assert_eq!(on_page, known);

    let markdown = fs::read_to_string(repository().join("docs/configuration.md"))?;
    for heading in markdown.lines().filter_map(|line| line.strip_prefix("## ")) {
        assert!(page.contains(&heading.to_uppercase()), "{heading}");
    }
    assert!(page.contains("discovery_url = \"https://"), "no example");
    Ok(())
}

/// Collects the keys of the parser, from its error for an unknown one.
fn keys_below(table: &str, known: &mut BTreeSet<String>) -> Outcome {
    let header = match table {
        "" => String::new(),
        "identity" => "[[identity]]\n".to_owned(),
        of_identity if of_identity.starts_with("identity.") => format!("[[identity]]\n[{table}]\n"),
        _ => format!("[{table}]\n"),
    };
    let text = format!("{header}no-such-key = 1\n");
    let complaint = match Config::parse(&text, Path::new("config.toml"), None) {
        Ok(_) => return Err(format!("{text:?} was accepted").into()),
        Err(e) => e.to_string(),
    };
    let Some((_, expected)) = complaint.split_once("unknown field `no-such-key`, expected ") else {
        known.insert(table.to_owned()); // a key and not a table
        return Ok(());
    };
    // Every second piece is between backticks.
    for name in expected.split('`').skip(1).step_by(2) {
        let path = if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") };
        keys_below(&path, known)?;
    }
    Ok(())
}
