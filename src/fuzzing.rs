//! The entry points for bytes from outside, each as a function of these bytes. `fuzz/` has
//! libFuzzer call them; a test here calls them with the committed corpora.
//!
//! A target panics when a rule is broken that holds for any input: what is accepted means the same
//! when it is written and read again, and an error has bounded, printable words.

/// Takes an input, and returns whether it was accepted.
type Target = fn(&[u8]) -> bool;

/// Every target by its name, which is that of its file in `fuzz/fuzz_targets` and of its directory
/// in `fuzz/corpus`.
const TARGETS: [(&str, Target); 20] = [
    ("bundle", miaf_spiffe::fuzzing::bundle),
    ("svid", miaf_spiffe::fuzzing::svid),
    ("discovery", crate::issuer::fuzzing::discovery),
    ("problem", crate::issuer::fuzzing::problem),
    ("retry_after", crate::transport::fuzzing::retry_after),
    ("issued", crate::issuer::fuzzing::issued),
    ("onboarded", crate::issuer::fuzzing::onboarded),
    ("est_pkcs7", crate::issuer::est_fuzzing::pkcs7),
    ("est_ca_certificates", crate::issuer::est_fuzzing::ca_certificates),
    ("est_token", crate::issuer::est_fuzzing::token),
    ("server_chain", crate::transport::fuzzing::server_chain),
    ("pem", miaf_spiffe::pem::fuzz),
    ("tss2", crate::keys::fuzzing::tss2),
    ("installed_key", crate::keys::fuzzing::installed_key),
    ("sealed", crate::keys::fuzzing::sealed),
    ("config", crate::config::fuzzing::config),
    ("records", crate::state::fuzzing::records),
    ("connection", crate::server::fuzzing::connection),
    ("authority", crate::server::fuzzing::authority),
    ("client", miaf_client::fuzzing::client),
];

/// Runs a target by its name.
///
/// # Panics
/// A rule is broken, or there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).expect("a target");
    target(data);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn fuzz_corpora_break_no_rule() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        for (name, target) in TARGETS {
            assert!(fuzz.join("fuzz_targets").join(name).with_extension("rs").exists(), "{name}");
            let mut is_accepted = false;
            for input in fs::read_dir(fuzz.join("corpus").join(name)).expect(name) {
                let input = input.unwrap().path();
                println!("{}", input.display()); // shown where one fails
                is_accepted |= target(&fs::read(&input).unwrap());
            }
            assert!(is_accepted, "{name}: no input of its corpus gets to the end");
        }
        assert_eq!(fs::read_dir(fuzz.join("corpus")).unwrap().count(), TARGETS.len());
        assert_eq!(fs::read_dir(fuzz.join("fuzz_targets")).unwrap().count(), TARGETS.len());
    }
}
