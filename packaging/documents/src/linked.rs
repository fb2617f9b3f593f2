//! The crates whose code is in the program: no build scripts, no procedural macros, nothing of
//! tests or other platforms.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// Name and version of a crate.
pub(crate) type Id = (String, String);

/// A linked crate.
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) version: String,
    /// An SPDX expression.
    pub(crate) license: String,
    pub(crate) repository: Option<String>,
    pub(crate) authors: Vec<String>,
    /// Directory of its source.
    pub(crate) directory: PathBuf,
    /// SHA-256 of the package from crates.io; `None` for crates of this project.
    pub(crate) checksum: Option<String>,
    /// Its dependencies among the linked crates.
    pub(crate) dependencies: BTreeSet<Id>,
}

/// All linked crates, and the version of their compiler.
pub(crate) struct Linked {
    pub(crate) agent: Crate,
    pub(crate) crates: Vec<Crate>,
    pub(crate) rust_version: String,
}

impl Linked {
    /// Reads the workspace in the current directory with cargo; by default for this platform and
    /// its compiler.
    pub(crate) fn read(target: Option<String>, rust_version: Option<String>) -> Result<Self, Box<dyn Error>> {
        let compiler = run("rustc", &["--version", "--verbose"])?;
        let of_compiler = |key: &str| {
            compiler.lines().find_map(|line| line.strip_prefix(key)).ok_or("rustc does not say what it is")
        };
        let target = target.as_deref().map_or_else(|| of_compiler("host: "), Ok)?;
        let rust_version = rust_version.as_deref().map_or_else(|| of_compiler("release: "), Ok)?.to_owned();
        let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());

        let tree = ["tree", "--locked", "--package", "miaf-agent", "--target", target, "--prefix", "none"];
        let edges = ["--edges", "normal,no-proc-macro", "--no-dedupe", "--format", "{p}"];
        let tree = run(&cargo, &[tree.as_slice(), &edges].concat())?;
        let linked: BTreeSet<Id> = tree.lines().filter_map(id_in_tree).collect();

        let metadata = ["metadata", "--locked", "--format-version", "1", "--filter-platform", target];
        let metadata: Value = serde_json::from_str(&run(&cargo, &metadata)?)?;
        let checksums = checksums()?;
        let mut ids = BTreeMap::new();
        for package in list(&metadata["packages"]) {
            ids.insert(text(&package["id"]), (text(&package["name"]), text(&package["version"])));
        }
        let mut edges: BTreeMap<Id, BTreeSet<Id>> = BTreeMap::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let normal =
                |dependency: &&Value| list(&dependency["dep_kinds"]).any(|kind| kind["kind"].is_null());
            let on = list(&node["deps"]).filter(normal).filter_map(|on| ids.get(&text(&on["pkg"])).cloned());
            if let Some(id) = ids.get(&text(&node["id"])) {
                edges.insert(id.clone(), on.filter(|on| linked.contains(on)).collect());
            }
        }

        let mut crates = Vec::new();
        for package in list(&metadata["packages"]) {
            let id = (text(&package["name"]), text(&package["version"]));
            if linked.contains(&id) {
                let manifest = PathBuf::from(text(&package["manifest_path"]));
                crates.push(Crate {
                    license: text(&package["license"]).replace('/', " OR "),
                    repository: package["repository"].as_str().map(str::to_owned),
                    authors: list(&package["authors"]).map(text).collect(),
                    directory: manifest.parent().ok_or("a crate has no directory")?.to_owned(),
                    checksum: checksums.get(&id).cloned(),
                    dependencies: edges.remove(&id).unwrap_or_default(),
                    name: id.0,
                    version: id.1,
                });
            }
        }
        crates.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        if crates.len() != linked.len() {
            return Err("cargo tree and cargo metadata do not name the same crates".into());
        }
        let agent = crates.iter().position(|one| one.name == "miaf-agent").ok_or("there is no miaf-agent")?;
        Ok(Self { agent: crates.remove(agent), crates, rust_version })
    }
}

/// Parses a line of `cargo tree`: `name vVERSION`, and more.
fn id_in_tree(line: &str) -> Option<Id> {
    let mut words = line.split(' ');
    Some((words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned()))
}

fn checksums() -> Result<BTreeMap<Id, String>, Box<dyn Error>> {
    let lock: toml::Table = fs::read_to_string("Cargo.lock")?.parse()?;
    let packages =
        lock.get("package").and_then(toml::Value::as_array).ok_or("Cargo.lock names no packages")?;
    let of = |package: &toml::Value, key| package.get(key).and_then(toml::Value::as_str).map(str::to_owned);
    Ok(packages
        .iter()
        .filter_map(|package| {
            Some(((of(package, "name")?, of(package, "version")?), of(package, "checksum")?))
        })
        .collect())
}

fn run(program: &str, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    if !output.status.success() {
        return Err(format!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
