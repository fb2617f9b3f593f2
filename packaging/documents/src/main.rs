//! Writes what a package has beside the program, all of it made from the sources: manual pages and completions from the
//! command line as it is, notices and SBOM from the crates that are really linked. The same sources give the same bytes.

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
    /// The root of the package. What is written is put where it will be installed.
    destination: PathBuf,
    /// The time that the documents are of, in seconds since 1970.
    #[arg(long)]
    epoch: u64,
    /// A shared library that the program loads, by the name it asks for.
    #[arg(long = "library")]
    libraries: Vec<String>,
    /// The platform that the program is for, where it is not this one.
    #[arg(long)]
    target: Option<String>,
    /// The version of the compiler, where another one than this machine's made the program.
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
