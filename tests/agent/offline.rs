//! A device without a route: it reports that it is offline, and not that the MIS is unreachable.

use crate::world::{self, World};

/// Origins that cannot be reached: addresses, and a name that has none.
const UNREACHABLE: [&str; 3] =
    ["https://198.51.100.1", "https://[2001:db8::7]:8443", "https://mis.factory.example"];

/// A device whose MIS is at this origin. It needs no TPM, which could not be reached either.
fn device_at(origin: &str, lines: &str) -> World {
    let world = World::new();
    let config = world::config(&world.mis, &world.tpm, "").replace(&world.mis.url(), origin);
    let config = config.replace("[key]", "[key]\nprovider = \"software\"");
    world.device.configure(&config.replace("[mis]", &format!("[mis]\n{lines}")));
    world
}

#[test]
fn device_without_a_route_reports_offline() {
    for (origin, proxy) in UNREACHABLE.map(|origin| (origin, "")).into_iter().chain([
        (UNREACHABLE[0], "proxy = \"http://198.51.100.2:3128\""),
        (UNREACHABLE[2], "proxy = \"http://proxy.factory.example:3128\""),
    ]) {
        let mut world = device_at(origin, proxy);
        world.device.go_offline();
        world.device.start();
        let error = world.device.wait_for_error("offline")["lastError"].clone();
        assert_eq!(error["code"], "offline", "{origin} {proxy}: {error:#}");
        assert_eq!(error["title"], "This device is offline");
        let detail = error["detail"].as_str().unwrap();
        assert!(detail.contains(origin), "{detail}");
        assert!(error["hint"].as_str().unwrap().contains("default route"), "{error:#}");
        assert_eq!(detail.contains("through the proxy"), !proxy.is_empty(), "{detail}");
    }
}

#[test]
fn unreachable_mis_is_not_reported_as_offline() {
    for proxy in ["", "proxy = \"http://127.0.0.1:1\""] {
        let mut world = device_at("https://127.0.0.1:1", proxy);
        world.device.start();
        let error = world.device.wait_for_error("Connection refused")["lastError"].clone();
        let want = if proxy.is_empty() { "unreachable" } else { "proxy" };
        assert_eq!(error["code"], want, "{error:#}");
    }
}

/// In a network of its own, with an address and no way out: the name server of this machine is not
/// reachable there.
#[test]
fn unresolved_name_is_not_reported_as_offline() {
    for (origin, proxy) in
        [(UNREACHABLE[2], ""), (UNREACHABLE[0], "proxy = \"http://proxy.factory.example:3128\"")]
    {
        let mut world = device_at(origin, proxy);
        world.device.in_network_of_its_own(
            "ip link set lo up && ip link add name one type veth peer name two && \
             ip address add 10.77.0.2/24 dev one && ip link set one up && ip link set two up",
        );
        world.device.start();
        let error = world.device.wait_for_error("cannot be resolved")["lastError"].clone();
        assert_eq!(error["code"], "name-not-resolved", "{error:#}");
        let detail = error["detail"].as_str().unwrap();
        let name = if proxy.is_empty() { "mis.factory.example" } else { "proxy.factory.example" };
        assert!(detail.contains(&format!("{name:?}")), "{detail}");
        let hint = error["hint"].as_str().unwrap();
        assert!(hint.contains("/etc/resolv.conf") && hint.contains("which has no default route"), "{hint}");
        assert!(!hint.contains("cable"), "{hint}");
    }
}
