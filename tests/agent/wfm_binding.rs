//! WFM Clients enrolled by binding assertion (miaf-v0 W1 to W5), with the development MIS and the
//! development WFM: who shows which certificate to whom, and what is refused.

use std::collections::BTreeSet;
use std::time::Duration;

use development_mis::{
    ClientKind as MisClient, Endpoint as MisEndpoint, Entry as MisEntry, Fault as MisFault, Limit, MintSpec,
    SvidFault,
};
use development_wfm::{
    AssertionFault, ClientKind, Credential, Endpoint, Entry, Fault, Limit as WfmLimit, Settings, Wfm,
};
use serde_json::Value;

use crate::identities::{self, DEVICE, run, wait_for, wait_for_state};
use crate::support::agent::PATIENCE;
use crate::support::tinyproxy::Tinyproxy;
use crate::world::{self, World};

pub(crate) const NAME: &str = "wfm-client";
pub(crate) const CLIENT: &str = "spiffe://factory.example/margo/wfm/wfm-1/client/line-7";
const WFM: &str = "spiffe://factory.example/margo/wfm/wfm-1";

/// A device, its TPM, an MIS, and a WFM that the MIS knows.
pub(crate) struct Plant {
    pub(crate) world: World,
    pub(crate) wfm: Wfm,
}

impl Plant {
    /// The agent is not started yet, nor configured for the WFM.
    pub(crate) fn new() -> Self {
        let world = World::with(|settings| {
            settings.policy.accept_wfm("wfm-1");
            world::long_enough(&mut settings.policy);
        });
        let (chain, key) = world.mis.mint_wfm("wfm-1").unwrap();
        let bundle = world.mis.bundle_file().unwrap();
        let mut settings = Settings::new(Credential::new(chain, key), bundle, world.mis.url());
        settings.offer_resumption = true; // no session is resumed
        let wfm = Wfm::start(settings).unwrap();
        Self { world, wfm }
    }

    /// The entry of the WFM Client in the configuration.
    pub(crate) fn client(&self, handle: Option<&str>) -> String {
        let handle = handle.map(|handle| format!("client_handle = \"{handle}\"\n")).unwrap_or_default();
        format!(
            "[[identity]]\nname = \"{NAME}\"\nenroll = \"wfm-binding\"\n\
             [identity.wfm]\nurl = \"{}\"\nid = \"wfm-1\"\n{handle}",
            self.wfm.url()
        )
    }

    /// Starts the agent with the device and the WFM Client, and these lines before.
    fn start(&mut self, before: &str) {
        self.world.configure(&format!("{before}{DEVICE}{}", self.client(Some("line-7"))));
        self.world.device.start();
    }

    fn configure_behind(&self, proxy: &Tinyproxy) {
        let identities = format!("{DEVICE}{}", self.client(Some("line-7")));
        let config = world::config(&self.world.mis, &self.world.tpm, &identities);
        let lines = format!("[mis]\nproxy = \"{}\"", proxy.url(""));
        self.world.device.configure(&config.replace("[mis]", &lines));
    }

    fn enrolled(before: &str) -> Self {
        let mut plant = Self::new();
        plant.start(before);
        plant.wait_for("an SVID", |client| client["svid"].is_object());
        plant
    }

    /// The status of the WFM Client.
    pub(crate) fn status(&self) -> Value {
        identities::identity(&self.world.device, NAME)
    }

    pub(crate) fn wait_for(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        wait_for(&self.world.device, NAME, what, holds)
    }

    /// Waits until the error of the WFM Client says this somewhere.
    pub(crate) fn wait_for_error(&self, says: &str) -> Value {
        let status = self.wait_for(says, |client| client["lastError"].to_string().contains(says));
        status["lastError"].clone()
    }

    /// The SPIFFE ID of the device.
    pub(crate) fn device_id(&self) -> String {
        identities::identity(&self.world.device, "device")["spiffeId"].as_str().unwrap().to_owned()
    }

    /// The enrollments that the MIS saw of the WFM Client.
    pub(crate) fn bindings(&self) -> Vec<MisEntry> {
        let all = self.world.seen(MisEndpoint::Enrollment).into_iter();
        all.filter(|entry| entry.client == MisClient::Svid).collect()
    }

    /// The renewals that the MIS granted to this SPIFFE ID.
    pub(crate) fn renewals(&self, id: &str) -> Vec<MisEntry> {
        let all = self.world.seen(MisEndpoint::Renewal).into_iter();
        all.filter(|entry| entry.spiffe_id.as_deref() == Some(id)).collect()
    }

    fn retry(&self) {
        run(&self.world.device, &["retry"]);
    }

    /// A credential that the MIS's operator has made.
    fn credential(&self, name: &str, spec: &MintSpec) -> Credential {
        let (chain, key) = self.world.mis.mint_files(name, spec).unwrap();
        Credential::new(chain, key)
    }
}

fn keys<'a>(entries: impl IntoIterator<Item = &'a MisEntry>) -> BTreeSet<&'a str> {
    entries.into_iter().filter_map(|entry| entry.csr_spki_sha256.as_deref()).collect()
}

fn statuses(entries: &[Entry]) -> Vec<Option<u16>> {
    entries.iter().map(|entry| entry.status).collect()
}

/// Which certificate is shown where: every pair of identity and server.
#[test]
fn each_server_sees_the_certificate_that_is_meant_for_it() {
    let plant = Plant::enrolled(world::SOON);
    let (world, wfm) = (&plant.world, &plant.wfm);
    let device = plant.device_id();
    for id in [&device, CLIENT] {
        world.device.wait_until(id, |_| plant.renewals(id).len() >= 2);
    }
    let client = plant.status();
    assert_eq!((client["spiffeId"].as_str(), &client["ready"]), (Some(CLIENT), &true.into()), "{client:#}");
    assert_eq!(
        (&client["enroll"], &client["key"]["protection"]),
        (&"wfm-binding".into(), &"hardware".into())
    );

    // The documents are fetched without a certificate.
    for endpoint in [MisEndpoint::Discovery, MisEndpoint::Bundle] {
        assert!(world.seen(endpoint).iter().all(|entry| entry.client == MisClient::None));
    }
    // The factory certificate: the device's enrollment, and nothing else anywhere.
    let enrollments = world.seen(MisEndpoint::Enrollment);
    let (by_factory, by_svid): (Vec<_>, Vec<_>) =
        enrollments.iter().partition(|entry| entry.client == MisClient::Factory);
    assert_eq!((by_factory.len(), by_svid.len()), (1, 1), "{enrollments:?}");
    assert_eq!(by_factory[0].spiffe_id.as_deref(), Some(device.as_str()));
    // The device's SVID: the onboarding at the WFM, and the enrollment of the client at the MIS.
    assert_eq!(by_svid[0].client_spiffe_id.as_deref(), Some(device.as_str()));
    assert_eq!(by_svid[0].spiffe_id.as_deref(), Some(CLIENT));
    let onboarded = wfm.journal();
    assert_eq!(onboarded.len(), 1, "a renewal needs no assertion: {onboarded:?}");
    for connection in wfm.connections() {
        assert_eq!(connection.client.kind, ClientKind::Device);
        assert_eq!(connection.client.spiffe_id.as_deref(), Some(device.as_str()));
        assert!(!connection.resumed);
    }
    assert_eq!(onboarded[0].onboarded.as_deref(), Some(CLIENT));
    // At a renewal each shows its own.
    for entry in world.seen(MisEndpoint::Renewal).iter().filter(|entry| entry.issued) {
        assert_eq!(entry.client, MisClient::Svid);
        assert_eq!(entry.client_spiffe_id, entry.spiffe_id, "{entry:?}");
    }
    // And the key of the one is never certified for the other.
    let mut of_device = keys(by_factory);
    let (renewed, client_renewed) = (plant.renewals(&device), plant.renewals(CLIENT));
    of_device.extend(keys(&renewed));
    let mut of_client = keys(by_svid);
    of_client.extend(keys(&client_renewed));
    assert!(of_device.len() > 2 && of_client.len() > 2, "each renewal had a new key");
    assert!(of_device.is_disjoint(&of_client));
}

#[test]
fn lost_responses_lead_to_a_new_assertion_for_the_same_key() {
    let mut plant = Plant::new();
    plant.wfm.fault(Endpoint::Onboarding, Fault::LoseResponse);
    plant.wfm.fault(Endpoint::Onboarding, Fault::CutBefore);
    // Of the device, then of the client: it is issued, and not received.
    plant.world.mis.fault(MisEndpoint::Enrollment, MisFault::Header("x-of", "the device".into()));
    plant.world.mis.fault(MisEndpoint::Enrollment, MisFault::LoseAnswer);
    plant.start("");
    wait_for_state(&plant.world.device, NAME, "active");
    let onboarded = plant.wfm.journal();
    assert_eq!(statuses(&onboarded), [Some(201), None, Some(201), Some(201)], "{onboarded:?}");
    let connections = plant.wfm.connections();
    assert_eq!(connections.len(), 4, "one each");
    assert!(connections.iter().all(|connection| !connection.resumed), "{connections:?}");
    // The MIS takes no assertion twice.
    let bindings = plant.bindings();
    assert_eq!(bindings.iter().filter_map(|entry| entry.status).collect::<Vec<_>>(), [201, 200]);
    assert_eq!(keys(&bindings).len(), 1, "{bindings:?}");
    assert_eq!(plant.world.mis.wfm_clients().len(), 1);
}

#[test]
fn refused_assertions_are_reported_with_the_reason() {
    let mut plant = Plant::new();
    let other = {
        let (chain, key) = plant.world.mis.mint_wfm("wfm-2").unwrap();
        Credential::new(chain, key)
    };
    // The first is used, the response to it lost, and it comes again.
    plant.world.mis.fault(MisEndpoint::Enrollment, MisFault::Header("x-of", "the device".into()));
    plant.world.mis.fault(MisEndpoint::Enrollment, MisFault::LoseAnswer);
    plant.wfm.fault(Endpoint::Onboarding, Fault::Stall(Duration::ZERO));
    let give = |fault| plant.wfm.sticky_fault(Endpoint::Onboarding, Fault::Assertion(fault));
    give(AssertionFault::Replayed);
    plant.world.configure(&format!("{DEVICE}{}", plant.client(Some("line-7"))));
    plant.world.device.start();
    let refused = |reason: &str| {
        let error = plant.wait_for_error(reason);
        let hint = error["hint"].as_str().unwrap();
        assert!(hint.contains("the assertion of the WFM"), "{error:#}");
        assert!(!error.to_string().contains("eyJ"), "the assertion is not shown: {error:#}");
        error
    };
    let error = refused("replayed");
    assert_eq!((&error["code"], &error["status"]), (&"not-authenticated".into(), &401.into()), "{error:#}");
    for (fault, reason) in [
        (AssertionFault::Expired, "expired"),
        (AssertionFault::NotYetValid, "not valid yet"),
        (AssertionFault::ForeignSigner(other.clone()), "not authorized"),
        (AssertionFault::WrongSignature(other), "signature"),
        (AssertionFault::WrongType("JWT".into()), "typ is"),
    ] {
        give(fault);
        refused(reason);
    }
    let status = plant.status();
    assert!(status["svid"].is_null() && status["state"] == "enrolling", "{status:#}");
    // The agent itself sees that this is none. The MIS is not bothered with it.
    let before = plant.bindings().len();
    give(AssertionFault::Garbage);
    let error = plant.wait_for_error("compact JWS");
    assert_eq!(error["code"], "malformed-response");
    assert!(!error.to_string().contains("not a JWS"), "{error:#}");
    assert!(plant.bindings().len() <= before + 1, "one more may have been on its way");
    // Permanent, by the table of P: the WFM is configured for another MIS.
    give(AssertionFault::WrongAudience("https://other.example/api/v1/identities".into()));
    let error = refused("aud is");
    assert_eq!((&error["code"], &error["permanent"]), (&"request-refused".into(), &true.into()), "{error:#}");
    assert_eq!(plant.status()["state"], "blocked");
    assert_eq!(identities::identity(&plant.world.device, "device")["state"], "active");

    plant.wfm.clear_faults();
    plant.retry();
    wait_for_state(&plant.world.device, NAME, "active");
    let bindings = plant.bindings();
    assert_eq!(keys(&bindings).len(), 1, "one key, whatever came in between");
    let log = plant.world.device.log();
    assert!(!log.contains("eyJ"), "no assertion is in the log");
}

#[test]
fn wrong_wfm_is_refused_before_a_byte_is_sent() {
    let mut plant = Plant::new();
    let (mis, wfm) = (&plant.world.mis, &plant.wfm);
    let device = "spiffe://factory.example/margo/device/11111111-1111-4111-8111-111111111111";
    let with = |id: &str, faults: Vec<SvidFault>| MintSpec {
        faults: [vec![SvidFault::SpiffeId(id.to_owned())], faults].concat(),
        ..MintSpec::new(WFM)
    };
    let minted = |name: &str, id: &str, faults| plant.credential(name, &with(id, faults));
    let wrong = [
        (minted("other", "spiffe://factory.example/margo/wfm/wfm-2", vec![]), "wfm/wfm-2, not spiffe:"),
        (minted("device", device, vec![]), "margo/device/1111"),
        (minted("client", CLIENT, vec![]), "client/line-7, not"),
        (minted("domain", "spiffe://other.example/margo/wfm/wfm-1", vec![]), "other.example"),
        (minted("below", "spiffe://factory.example/margo/wfm/wfm-1/x", vec![]), "wfm-1/x, not"),
        // Trusted for the MIS, and with the right host name: of no use here.
        (Credential::new(mis.server_cert(), mis.directory().join("tls.key")), "no usable SVID"),
        (minted("two", WFM, vec![SvidFault::TwoUriSans]), "2 URI names"),
        (minted("expired", WFM, vec![SvidFault::Expired]), "expired at"),
        (minted("early", WFM, vec![SvidFault::NotYetValid(Duration::from_secs(300))]), "becomes valid at"),
        (minted("issuer", WFM, vec![SvidFault::UnknownIssuer]), "does not vouch for"),
        (minted("ca", WFM, vec![SvidFault::CaTrue]), "certificate authority"),
    ];
    wfm.show(wrong[0].0.clone());
    plant.world.configure(&format!("{DEVICE}{}", plant.client(Some("line-7"))));
    plant.world.device.start();
    for (credential, reason) in wrong {
        plant.wfm.show(credential);
        let error = plant.wait_for_error(reason);
        assert_eq!(error["code"], "wfm-not-trusted", "{error:#}");
        assert!(error["detail"].as_str().unwrap().contains(plant.wfm.url()), "{error:#}");
        assert!(error["hint"].is_string() && error["permanent"] == false, "{error:#}");
    }
    assert_eq!(plant.wfm.application_bytes(), 0);
    assert!(plant.wfm.connections().is_empty(), "no handshake succeeded: the device's SVID was not shown");
    assert!(plant.bindings().is_empty());
    assert_eq!(identities::identity(&plant.world.device, "device")["state"], "active");
    plant.wfm.show_own();
    wait_for_state(&plant.world.device, NAME, "active");
}

#[test]
fn errors_of_the_wfm_are_reported_with_what_to_do() {
    let mut plant = Plant::new();
    let respond = |fault: Fault| plant.wfm.sticky_fault(Endpoint::Onboarding, fault);
    let page = || Fault::response(502, &[("content-type", "text/html")], "<title>away</title>");
    respond(page());
    plant.world.configure(&format!("{DEVICE}{}", plant.client(Some("line-7"))));
    plant.world.device.start();
    let reported = |status: u16, code: &str, permanent: bool, hint: &str| {
        let error = plant
            .wait_for(&format!("{status}"), |client| {
                client["lastError"]["status"] == status
                    && client["lastError"]["hint"].as_str().is_some_and(|says| says.contains(hint))
            })
            .remove_error();
        assert_eq!((&error["code"], &error["permanent"]), (&code.into(), &permanent.into()), "{error:#}");
        assert!(error["detail"].as_str().unwrap().contains(plant.wfm.url()), "{error:#}");
    };
    reported(502, "server-error", false, "operator of the WFM");
    respond(Fault::problem(401, "", None));
    reported(401, "wfm-refused", false, "does not accept the SVID of this device");
    respond(Fault::problem(403, "wfm-client-onboarding-forbidden", None));
    reported(403, "wfm-refused", false, "accept this device, by its SPIFFE ID");
    respond(Fault::problem(404, "", None));
    reported(404, "wfm-refused", false, "enroll = \"manual\"");
    respond(Fault::response(422, &[], "")); // its sender is unknown
    reported(422, "wfm-refused", false, "operator of the WFM");
    respond(Fault::problem(429, "too-many-requests", Some("1")));
    reported(429, "wfm-refused", false, "raise its limit");
    respond(Fault::response(302, &[("location", "https://other.example/")], ""));
    let error = plant.wait_for_error("redirects");
    assert!(error["hint"].as_str().unwrap().contains("[identity.wfm]"), "{error:#}");
    respond(Fault::response(201, &[], "{\"bindingAssertion\": [\"a.b.c\"]}"));
    let error = plant.wait_for_error("no JSON object with");
    assert_eq!(
        (&error["code"], &error["title"]),
        (&"malformed-response".into(), &"The WFM's response cannot be used".into())
    );
    respond(Fault::response(201, &[], "a.b.c"));
    let error = plant.wait_for_error("it is no JSON object\"");
    assert!(!error.to_string().contains("a.b.c"), "{error:#}");
    respond(Fault::response(202, &[], "{\"bindingAssertion\": \"a.b.c\"}"));
    let error = plant.wait_for_error("it has the status 202");
    assert!(!error.to_string().contains("a.b.c"), "{error:#}");
    assert!(!plant.world.device.log().contains("a.b.c"), "{}", plant.world.device.log());

    respond(Fault::response(201, &[], format!("{{\"a\":\"{}\"", "x".repeat(70_000))));
    plant.wait_for_error("larger than 65536 bytes");

    for (status, code, hint) in [
        (400, "", "Show this to the operator"),
        (422, "wfm-client-handle-conflict", "another client_handle"),
        (422, "wfm-client-id-conflict", "another client_handle"),
    ] {
        respond(page());
        plant.retry();
        reported(502, "server-error", false, "operator of the WFM");
        respond(Fault::problem(status, code, None));
        reported(status, "wfm-refused", true, hint);
        assert_eq!(plant.status()["state"], "blocked");
    }
    assert!(plant.bindings().is_empty(), "the MIS has seen nothing of it");
    plant.wfm.clear_faults();
    plant.retry();
    wait_for_state(&plant.world.device, NAME, "active");
}

trait RemoveError {
    fn remove_error(self) -> Value;
}

impl RemoveError for Value {
    fn remove_error(mut self) -> Value {
        self["lastError"].take()
    }
}

#[test]
fn real_refusals_of_the_wfm_end_when_it_accepts_the_device() {
    let mut plant = Plant::new();
    plant.wfm.policy(|policy| policy.devices = Some(BTreeSet::new()));
    plant.start("");
    let error = plant.wait_for_error("this device may not have a client of this WFM");
    assert_eq!((&error["code"], &error["status"]), (&"wfm-refused".into(), &403.into()), "{error:#}");
    let device = plant.device_id();
    plant.wfm.policy(|policy| policy.devices = Some(BTreeSet::from([device])));
    wait_for_state(&plant.world.device, NAME, "active");
}

#[test]
fn device_that_the_wfm_does_not_trust_is_told_so() {
    let mut plant = Plant::new();
    // The WFM has the bundle of something else.
    let ca = std::fs::read(plant.world.mis.ca_file()).unwrap();
    let bundle = plant.world.mis.bundle_file().unwrap();
    std::fs::write(&bundle, ca).unwrap();
    plant.start("");
    let error = plant.wait_for_error("401");
    assert_eq!((&error["code"], &error["status"]), (&"wfm-refused".into(), &401.into()), "{error:#}");
    plant.wfm.policy(|policy| policy.refuse_in_handshake = true);
    let error = plant.wait_for_error("in the TLS handshake");
    assert_eq!(error["code"], "wfm-refused", "{error:#}");
    assert_eq!(error["title"], "The WFM refused this device's certificate");
    assert!(error["hint"].as_str().unwrap().contains("WFM"), "{error:#}");
    plant.world.mis.bundle_file().unwrap();
    wait_for_state(&plant.world.device, NAME, "active");
}

/// TLS is with the WFM itself, whatever is in between.
#[test]
fn proxy_of_the_mis_leads_to_the_wfm_too() {
    let mut plant = Plant::new();
    let closed = Tinyproxy::start(plant.world.mis.port(), "");
    let open = Tinyproxy::start(plant.world.mis.port(), &format!("ConnectPort {}", plant.wfm.port()));
    plant.configure_behind(&closed);
    plant.world.device.start();
    let error = plant.wait_for_error("The proxy does not lead to the WFM");
    assert_eq!(error["code"], "proxy", "{error:#}");
    assert!(plant.wfm.connections().is_empty());
    plant.configure_behind(&open);
    plant.world.device.signal("HUP");
    wait_for_state(&plant.world.device, NAME, "active");
    assert_eq!(plant.wfm.connections()[0].client.kind, ClientKind::Device);
}

#[test]
fn wfm_of_the_archived_form_is_served_too() {
    let mut plant = Plant::new();
    // It does not know the member of v0; the MIS knows that of the assertion.
    plant.wfm.fault(Endpoint::Onboarding, Fault::problem(400, "", None));
    plant.start("");
    let active = wait_for_state(&plant.world.device, NAME, "active");
    assert_eq!(active["spiffeId"], CLIENT);
    assert_eq!(statuses(&plant.wfm.journal()), [Some(400), Some(201)]);
    assert_eq!(plant.wfm.journal()[1].onboarded.as_deref(), Some(CLIENT));
}

#[test]
fn wfm_derives_the_handle_where_none_is_configured() {
    let plant = Plant::new();
    plant.world.configure(&format!("{DEVICE}{}", plant.client(None)));
    let mut plant = plant;
    plant.world.device.start();
    let active = wait_for_state(&plant.world.device, NAME, "active");
    let id = active["spiffeId"].as_str().unwrap();
    assert!(id.starts_with(&format!("{WFM}/client/client-")), "{id}");
    assert_eq!(plant.wfm.journal()[0].onboarded.as_deref(), Some(id));
}

#[test]
fn svid_of_another_client_is_refused() {
    let mut plant = Plant::new();
    // The MIS, or the WFM, mistakes this client for another.
    plant
        .wfm
        .sticky_fault(Endpoint::Onboarding, Fault::Assertion(AssertionFault::OtherHandle("line-8".into())));
    plant.start("");
    let error = plant.wait_for_error("client/line-8");
    assert_eq!(error["code"], "svid-refused", "{error:#}");
    assert!(plant.status()["svid"].is_null());
    plant.wfm.clear_faults();
    let other = "spiffe://factory.example/margo/wfm/wfm-2/client/line-7";
    let bent = MisFault::Svid(SvidFault::SpiffeId(other.into()));
    plant.world.mis.sticky_fault(MisEndpoint::Enrollment, bent);
    plant.retry();
    let error = plant.wait_for_error("is not a WFM Client of");
    assert!(error["detail"].as_str().unwrap().contains(other), "{error:#}");
    assert!(plant.status()["svid"].is_null());
    assert_eq!(identities::identity(&plant.world.device, "device")["state"], "active");
    plant.world.mis.clear_faults();
    plant.retry();
    wait_for_state(&plant.world.device, NAME, "active");
}

#[test]
fn retry_after_of_the_wfm_survives_a_restart() {
    let mut plant = Plant::new();
    let limit = WfmLimit { successes: 0, window: Duration::from_secs(3600) };
    plant.wfm.policy(|policy| policy.onboarding_limit = Some(limit));
    plant.start("");
    let error = plant.wait_for_error("too-many-requests");
    assert_eq!((&error["code"], &error["status"]), (&"wfm-refused".into(), &429.into()), "{error:#}");
    let asked = plant.wfm.journal();
    assert!(asked[0].retry_after.is_some_and(|delay| delay > 3000), "{asked:?}");
    plant.wfm.policy(|policy| policy.onboarding_limit = None);
    plant.world.kill();
    plant.world.device.start();
    let after = plant.wait_for("the delay", |client| client["lastError"]["retryAt"].is_string());
    assert_eq!(after["lastError"]["code"], "wfm-refused", "{after:#}");
    plant.retry();
    let device = identities::identity(&plant.world.device, "device")["svid"]["serial"].clone();
    run(&plant.world.device, &["renew", "--identity", "device"]);
    wait_for(&plant.world.device, "device", "another SVID", |device_| device_["svid"]["serial"] != device);
    assert_eq!(plant.wfm.journal().len(), asked.len(), "no command and no restart shortens it");
}

#[test]
fn retry_after_of_a_wfm_does_not_bind_another() {
    let mut plant = Plant::new();
    let limit = WfmLimit { successes: 0, window: Duration::from_secs(3600) };
    plant.wfm.policy(|policy| policy.onboarding_limit = Some(limit));
    plant.start("");
    plant.wait_for_error("too-many-requests");
    let (chain, key) = plant.world.mis.mint_wfm("wfm-1").unwrap();
    let bundle = plant.world.mis.bundle_file().unwrap();
    let settings = Settings::new(Credential::new(chain, key), bundle, plant.world.mis.url());
    let other = Wfm::start(settings).unwrap();
    let (here, there) = (plant.wfm.url().to_string(), other.url().to_string());
    let asked = plant.wfm.journal().len();
    let client = plant.client(Some("line-7")).replace(&here, &there);
    plant.world.configure(&format!("{DEVICE}{client}"));
    plant.world.device.signal("HUP");
    wait_for_state(&plant.world.device, NAME, "active");
    assert_eq!((plant.wfm.journal().len(), other.journal().len()), (asked, 1));
}

#[test]
fn refused_renewal_leads_to_a_new_binding() {
    let plant = Plant::enrolled("");
    let before = wait_for_state(&plant.world.device, NAME, "active");
    // All of them: the device enrolls again first, since it is the client of both.
    plant.world.mis.invalidate_svids().unwrap();
    for name in ["device", NAME] {
        run(&plant.world.device, &["renew", "--identity", name]);
    }
    let after = plant.wait_for("another SVID", |client| {
        client["svid"]["serial"].is_string() && client["svid"]["serial"] != before["svid"]["serial"]
    });
    assert_eq!(after["spiffeId"], CLIENT);
    let refused = plant.world.seen(MisEndpoint::Renewal);
    let refused = refused.iter().filter(|entry| entry.status == Some(401));
    assert!(refused.clone().any(|entry| entry.client_spiffe_id.as_deref() == Some(CLIENT)));
    let last = plant.bindings().pop().unwrap();
    assert_eq!(last.client_spiffe_id, Some(plant.device_id()), "as the device, with a new assertion");
    assert!(plant.wfm.journal().len() >= 2);
    assert!(plant.wfm.journal().iter().all(|entry| entry.client.kind == ClientKind::Device));
}

#[test]
fn rate_limit_of_the_mis_is_the_clients_own() {
    let plant = Plant::enrolled("");
    let before = wait_for_state(&plant.world.device, NAME, "active");
    let limit = Some(Limit { successes: 1, window: Duration::from_secs(7200) });
    plant.world.mis.policy(|policy| policy.renewal_limit = limit);
    run(&plant.world.device, &["renew", "--identity", NAME]);
    let renewed = plant.wait_for("a renewal", |client| client["svid"]["serial"] != before["svid"]["serial"]);
    wait_for_state(&plant.world.device, NAME, "active");
    run(&plant.world.device, &["renew", "--identity", NAME]);
    let error = plant.wait_for_error("too-many-requests");
    assert_eq!(error["status"], 429, "{error:#}");
    plant.world.mis.policy(|policy| policy.renewal_limit = None);
    for _ in 0..2 {
        let before = identities::identity(&plant.world.device, "device")["svid"]["serial"].clone();
        run(&plant.world.device, &["renew", "--identity", "device"]);
        wait_for(&plant.world.device, "device", "a renewal", |device| device["svid"]["serial"] != before);
    }
    let client = plant.status();
    assert_eq!((&client["svid"]["serial"], &client["ready"]), (&renewed["svid"]["serial"], &true.into()));
    assert!(
        plant.wfm.wait_for(PATIENCE, |entries| entries.len() == 1).is_some(),
        "no new assertion for that"
    );
}

#[test]
fn other_configured_handle_means_another_client() {
    let plant = Plant::enrolled("");
    let device = identities::identity(&plant.world.device, "device")["svid"]["serial"].clone();
    let other = plant.client(Some("line-8"));
    plant.world.configure(&format!("{DEVICE}{other}"));
    plant.world.device.signal("HUP");
    let id = format!("{WFM}/client/line-8");
    plant.wait_for("the other client", |client| client["spiffeId"] == id.as_str());
    assert_eq!(identities::identity(&plant.world.device, "device")["svid"]["serial"], device);
    assert!(plant.world.seen(MisEndpoint::Renewal).is_empty(), "the one was not renewed as the other");
}

/// The clock of this device decides about the SVID of the WFM, and not the other way round.
#[test]
fn time_of_the_wfm_proves_nothing() {
    let mut plant = Plant::new();
    let wrong = Fault::response(503, &[("date", "Sat, 01 Jan 2050 00:00:00 GMT")], "");
    plant.wfm.sticky_fault(Endpoint::Onboarding, wrong);
    plant.start("");
    let asked = |count: usize| plant.wfm.wait_for(PATIENCE, |entries| entries.len() >= count).is_some();
    assert!(asked(8));
    let log = plant.world.device.log();
    assert!(!log.contains("is requested again") && !log.contains("waiting-for-clock"), "{log}");
    plant.wfm.clear_faults();
    wait_for_state(&plant.world.device, NAME, "active");
}
