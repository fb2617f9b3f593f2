//! No way out of the device: it says so, and does not say that the MIS is away.

use crate::world::{self, World};

/// Addresses, and a name that has none.
const ELSEWHERE: [&str; 3] =
    ["https://198.51.100.1", "https://[2001:db8::7]:8443", "https://mis.factory.example"];

/// A device whose MIS is at this origin. It needs no TPM, which could not be reached either.
fn device_of(origin: &str, lines: &str) -> World {
    let world = World::new();
    let config = world::config(&world.mis, &world.tpm, "").replace(&world.mis.url(), origin);
    let config = config.replace("[key]", "[key]\nprovider = \"software\"");
    world.device.configure(&config.replace("[mis]", &format!("[mis]\n{lines}")));
    world
}

#[test]
fn a_device_without_any_route_says_that_it_is_offline_and_what_to_check() {
    for (origin, proxy) in ELSEWHERE.map(|origin| (origin, "")).into_iter().chain([
        (ELSEWHERE[0], "proxy = \"http://198.51.100.2:3128\""),
        (ELSEWHERE[2], "proxy = \"http://proxy.factory.example:3128\""),
    ]) {
        let mut world = device_of(origin, proxy);
        world.device.go_offline();
        world.device.start();
        let error = world.device.wait_for_error("offline")["lastError"].clone();
        assert_eq!(error["type"], "urn:miaf-agent:error:offline", "{origin} {proxy}: {error:#}");
        assert_eq!(error["title"], "This device is offline");
        let detail = error["detail"].as_str().unwrap();
        assert!(detail.contains(origin) && detail.contains("default route"), "{detail}");
        assert_eq!(detail.contains("through the proxy"), !proxy.is_empty(), "{detail}");
    }
}

#[test]
fn a_mis_that_is_away_is_not_taken_for_a_device_that_is() {
    for proxy in ["", "proxy = \"http://127.0.0.1:1\""] {
        let mut world = device_of("https://127.0.0.1:1", proxy);
        world.device.start();
        let error = world.device.wait_for_error("Connection refused")["lastError"].clone();
        let want = if proxy.is_empty() { "unreachable" } else { "proxy" };
        assert_eq!(error["type"], format!("urn:miaf-agent:error:{want}"), "{error:#}");
    }
}

/// In a network of its own, with an address and no way out: the name server of this machine does not answer there.
#[test]
fn a_name_that_is_not_resolved_is_not_called_offline() {
    for (origin, proxy) in
        [(ELSEWHERE[2], ""), (ELSEWHERE[0], "proxy = \"http://proxy.factory.example:3128\"")]
    {
        let mut world = device_of(origin, proxy);
        let network = "ip link set lo up && ip link add name one type veth peer name two && \
                       ip address add 10.77.0.2/24 dev one && ip link set one up && ip link set two up && \
                       exec \"$0\" \"$@\"";
        world.device.under(&["unshare", "--user", "--map-root-user", "--net", "sh", "-c", network]);
        world.device.start();
        let error = world.device.wait_for_error("cannot be resolved")["lastError"].clone();
        let (kind, name) = if proxy.is_empty() {
            ("name-not-resolved", "the name \"mis.factory.example\"")
        } else {
            ("proxy", "the proxy http://proxy.factory.example:3128")
        };
        assert_eq!(error["type"], format!("urn:miaf-agent:error:{kind}"), "{error:#}");
        let detail = error["detail"].as_str().unwrap();
        assert!(detail.contains(name) && detail.contains("/etc/resolv.conf"), "{detail}");
        assert!(!detail.contains("cable"), "{detail}");
    }
}
