//! Writes the documents of a package, generated from the sources: manual pages and completions from
//! the command line, notices and SBOM from the crates that are really linked. The same sources give
//! the same bytes.

#![forbid(unsafe_code)]
#![allow(clippy::indexing_slicing, reason = "of JSON only: what is not there is null")]

mod linked;
mod manual;
mod markdown;
mod notices;
mod sbom;

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use clap::Parser;
use linked::Linked;

#[derive(Parser)]
struct Arguments {
    /// The root of the package. Every file is written to the path where it will be installed.
    destination: PathBuf,
    /// The date of the documents, in seconds since 1970.
    #[arg(long)]
    epoch: u64,
    /// A shared library that the program loads, by the name that it requests.
    #[arg(long = "library")]
    libraries: Vec<String>,
    /// The platform of the program, if it is not this one.
    #[arg(long)]
    target: Option<String>,
    /// The version of the compiler, if the program was not compiled on this machine.
    #[arg(long)]
    rust_version: Option<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let share = arguments.destination.join("usr/share");
    manual::write_pages(&share.join("man"), arguments.epoch)?;
    manual::write_completions(&share)?;

    let linked = Linked::read(arguments.target, arguments.rust_version)?;
    let documents = share.join("doc/miaf-agent");
    fs::create_dir_all(&documents)?;
    fs::write(documents.join("third-party-notices.txt"), notices::text(&linked)?)?;
    let sbom = sbom::document(&linked, &arguments.libraries, arguments.epoch);
    fs::write(documents.join("sbom.cdx.json"), serde_json::to_string_pretty(&sbom)? + "\n")?;
    Ok(())
}
