//! The bill of materials, as CycloneDX.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::linked::{Crate, Linked};

/// The whole document.
pub(crate) fn document(linked: &Linked, libraries: &[String], epoch: u64) -> Value {
    let of = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(epoch)).to_string();
    let mut agent = component(&linked.agent);
    agent["type"] = json!("application");
    let mut components: Vec<Value> = linked.crates.iter().map(component).collect();
    components.push(json!({
        "type": "library",
        "bom-ref": "rust-std",
        "name": "rust-std",
        "version": linked.rust_version,
        "description": "The Rust standard library",
        "licenses": [{ "expression": "MIT OR Apache-2.0" }],
    }));
    // Which version of them is installed is for the device's own package manager to say.
    components.extend(libraries.iter().map(|name| {
        json!({
            "type": "library",
            "bom-ref": name,
            "name": name,
            "description": "A shared library of the operating system, loaded at run time",
        })
    }));

    let all = linked.crates.iter().chain([&linked.agent]);
    let mut dependencies: Vec<Value> = all
        .map(|one| {
            let mut on: Vec<String> =
                one.dependencies.iter().map(|(name, version)| reference(name, version)).collect();
            if one.name == linked.agent.name {
                on.extend(["rust-std".to_owned()]);
                on.extend(libraries.iter().cloned());
            }
            json!({ "ref": reference(&one.name, &one.version), "dependsOn": on })
        })
        .collect();
    dependencies.sort_by_key(|one| one["ref"].to_string());
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "timestamp": of, "component": agent },
        "components": components,
        "dependencies": dependencies,
    })
}

fn component(one: &Crate) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(&one.name, &one.version),
        "name": one.name,
        "version": one.version,
        "licenses": [{ "expression": one.license }],
    });
    if let Some(repository) = &one.repository {
        component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
    }
    match &one.checksum {
        Some(checksum) => {
            component["purl"] = json!(format!("pkg:cargo/{}@{}", one.name, one.version.replace('+', "%2B")));
            component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
        }
        // Without a purl, since a crate of this name on crates.io would be another one.
        None => component["description"] = json!("Part of miaf-agent's own sources"),
    }
    component
}

fn reference(name: &str, version: &str) -> String {
    format!("{name}@{version}")
}
