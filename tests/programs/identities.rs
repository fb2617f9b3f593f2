//! docs/identities.md, followed: an identity that `openssl ca` certifies with the config of the page,
//! one that is installed, and its removal. There is no MIS.

use std::fs;

use crate::site::{self, Site};

const PAGE: &str = include_str!("../../docs/identities.md");

#[test]
fn identities_document_leads_to_identities_without_an_mis() {
    let mut site = Site::new(PAGE);
    site.start("");
    fs::write(site.device.path("ca.cnf"), site.block("ini ca.cnf")).unwrap();
    site.follow("ca");
    site.follow("bundle");
    site.configure("wfm-client");
    // A device without an identity applies its configuration by itself; the reload comes on top.
    site.device.wait_until("the configuration", |device| {
        device.status_document()["identities"][0]["name"] == "wfm-client"
    });
    site.follow("csr");
    site.shows("wfm-client", "waiting");
    site.follow("sign");
    site.follow("install");
    site.shows("wfm-client", "active");
    let document = site.device.status_document();
    assert!(document["lastError"].is_null(), "{document:#}");

    site.follow("installed");
    site.configure("gateway");
    site.follow("reload");
    site.shows("gateway", "installed");
    let authorized = site.device.path("state/svid/gateway/authorized.json");
    site.device.wait_until("authorized.json", |_| authorized.exists());

    site.follow("remove");
    let retired = site.device.path("state/private/retired-1-gateway/identity.json");
    site.device.wait_until("it is retired", |_| retired.exists());
    site.shows("wfm-client", "active");
    assert!(!site.device.path("state/svid/gateway/current").exists());
}

#[test]
fn toml_of_the_identities_document_can_be_used() {
    site::assert_toml_of(PAGE);
}

#[test]
fn modulus_of_an_rsa_ca_is_printed_for_its_bundle() {
    let site = Site::new(PAGE);
    site.run("openssl req -x509 -newkey rsa:3072 -nodes -keyout ca.key -out ca.pem -subj /CN=CA 2>/dev/null");
    fs::write(site.device.path("modulus"), site.block("sh modulus")).unwrap();
    site.run(
        "printed=$(sh modulus | tr '_-' '/+' | openssl base64 -d -A | od -An -v -tx1 | tr -d ' \\n')\n\
         test \"$printed\" = \"$(openssl x509 -in ca.pem -noout -modulus | cut -d= -f2 | tr A-F a-f)\"",
    );
}
