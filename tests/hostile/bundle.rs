//! Trust bundles of a megabyte whose shape is chosen to cost the reader many times that.

use development_mis::{DocumentFault, Endpoint, Fault};
use serde_json::Value;

use crate::usage::{memory, peak_memory};
use crate::world::World;

/// Bytes of a document, just under what the agent reads.
const SIZE: usize = 1024 * 1024 - 4096;
/// What a bundle of that size may add to the agent's peak: its bytes, and little more.
const PEAK_KIB: u64 = 12 * 1024;
/// What may be left of all of them, in the end.
const LEFT_KIB: u64 = 8 * 1024;

/// An array of as many of `element` as fit.
fn many(element: &str) -> String {
    let mut text = vec![element; SIZE / (element.len() + 1)].join(",");
    text.insert(0, '[');
    text.push(']');
    text
}

fn nested(open: &str, close: &str) -> String {
    let levels = SIZE / (open.len() + close.len());
    format!("{}0{}", open.repeat(levels), close.repeat(levels))
}

/// The bundle of this trust domain, with these members more in its key, in its entry, and in its
/// map.
fn served(key: &Value, in_key: &str, more_keys: &str, in_entry: &str, in_map: &str) -> String {
    let key = key.to_string();
    let key = format!("{}{in_key}}}", key.strip_suffix('}').unwrap());
    format!(r#"{{"trust_domains":{{"factory.example":{{"keys":[{key}{more_keys}]{in_entry}}}{in_map}}}}}"#)
}

#[test]
fn bundle_of_any_shape_costs_its_own_size() {
    let world = World::enrolled();
    let bundle: Value = serde_json::from_str(&world.device.get("/v1/bundle").unwrap().1).unwrap();
    let key = &bundle["keys"][0];
    let names: String = (0..SIZE / 9).map(|n| format!(r#","{n:x}":0"#)).collect();
    let shapes = [
        ("objects in a key", served(key, &format!(r#","pad":{}"#, many(r#"{"":0}"#)), "", "", "")),
        ("members of a key", served(key, &names, "", "", "")),
        ("arrays in arrays", served(key, &format!(r#","pad":{}"#, nested("[", "]")), "", "", "")),
        ("objects in objects", served(key, "", "", &format!(r#","pad":{}"#, nested("{\"\":", "}")), "")),
        ("keys of no kind", served(key, "", &format!(",{}", many("{}").trim_matches(['[', ']'])), "", "")),
        (
            "a sequence that is a tree",
            served(key, "", "", &format!(r#","spiffe_sequence":{}"#, many("[]")), ""),
        ),
        (
            "a hint that is a tree",
            served(key, "", "", &format!(r#","spiffe_refresh_hint":{}"#, many("{}")), ""),
        ),
        (
            "another trust domain",
            served(key, "", "", "", &format!(r#","other.example":{{"keys":{}}}"#, many(r#"{"a":[]}"#))),
        ),
        ("trust domains", served(key, "", "", "", &names)),
        (
            "an anchor of a megabyte",
            served(
                key,
                "",
                &format!(r#",{{"kty":"EC","use":"x509-svid","x5c":["{}"]}}"#, "A".repeat(SIZE)),
                "",
                "",
            ),
        ),
        (
            "certificates behind the first",
            served(key, "", &format!(r#",{{"kty":"EC","use":"x509-svid","x5c":{}}}"#, many("0")), "", ""),
        ),
        ("a long name of a key", served(key, &format!(r#","kid":"{}""#, "k".repeat(SIZE)), "", "", "")),
        ("the whole", many("{}")),
    ];
    let (peak_before, before) = (peak_memory(&world.device), memory(&world.device));
    for (story, body) in shapes {
        assert!(body.len() > 512 * 1024 && body.len() < 1024 * 1024 + 65_536, "{story}: {}", body.len());
        let seen = world.seen(Endpoint::Bundle).len();
        let fault = Fault::Document(DocumentFault::Replace(body.into_bytes()));
        world.mis.sticky_fault(Endpoint::Bundle, fault);
        world.wait_for_requests(Endpoint::Bundle, seen + 3);
        let peak = peak_memory(&world.device).saturating_sub(peak_before);
        assert!(peak < PEAK_KIB, "{story}: {peak} KiB more than before");
    }
    world.mis.clear_faults();
    world.wait_for_requests(Endpoint::Bundle, world.seen(Endpoint::Bundle).len() + 2);
    let left = memory(&world.device).saturating_sub(before);
    assert!(left < LEFT_KIB, "{left} KiB are left");
    assert_eq!(world.device.get("/readyz").unwrap().0, 200, "the current bundle stays in use");
}
