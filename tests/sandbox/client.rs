//! The released WFM client, unmodified, on the files that the agent publishes.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use development_mis::{MintSpec, SvidFault};
use development_wfm::{Credential, Settings, Wfm};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program;
use crate::support::agent::Device;
use crate::support::program::Program;
use crate::world::{CLIENT, IDENTITY, Mis, WFM, World, openssl, sign};

const BASE: &str = "/v1alpha2/margo";
const REFUSED_AT_START: i32 = 3;
const REFUSED_PEER: i32 = 4;

/// The files that a released client is configured with.
struct Files {
    cert: PathBuf,
    key: PathBuf,
    bundle: PathBuf,
    authorized: PathBuf,
}

impl Files {
    fn of(world: &World) -> Self {
        Self {
            cert: world.published("svid.pem"),
            key: world.published("key.pem"),
            bundle: world.published("bundle.json"),
            authorized: world.authorized(),
        }
    }

    /// A client that has its bundle from the MIS, and the file for want of that.
    fn client_of_mis(&self, mis: &Mis, wfm: &str, more: &[&str]) -> Program {
        let ca = mis.file("https-ca.crt");
        self.client(wfm, &[&"--mis", &mis.url, &"--https-ca", &ca], more)
    }

    /// A client that has its bundle from the file.
    fn client_of_file(&self, wfm: &str, more: &[&str]) -> Program {
        self.client(wfm, &[], more)
    }

    fn client(&self, wfm: &str, source: &[&dyn AsRef<OsStr>], more: &[&str]) -> Program {
        let wfm = format!("{wfm}{BASE}");
        let mut arguments: Vec<&dyn AsRef<OsStr>> =
            vec![&"--cert", &self.cert, &"--key", &self.key, &"--bundle", &self.bundle];
        let further: [&dyn AsRef<OsStr>; 4] = [&"--authz", &self.authorized, &"--wfm", &wfm];
        arguments.extend(further);
        arguments.extend(source);
        arguments.extend(more.iter().map(|one| one as &dyn AsRef<OsStr>));
        program::start("client.py", &arguments)
    }
}

/// A WFM of margo/symphony with these accepted clients. It has its bundle from the MIS.
fn symphony(mis: &Mis, clients: &[&str]) -> (Program, String) {
    let (cert, key) = mis.mint("symphony", WFM);
    let (ca, list) = (mis.file("https-ca.crt"), mis.file("clients.json"));
    fs::write(&list, json!(clients).to_string()).unwrap();
    let (mut server, url) = program::serve(
        "wfm.py",
        &[
            &"--mode",
            &"symphony",
            &"--port",
            &"0",
            &"--cert",
            &cert,
            &"--key",
            &key,
            &"--mis",
            &mis.url,
            &"--https-ca",
            &ca,
            &"--authz",
            &list,
        ],
    );
    server.next("its last check", |line| line["check"] == "authorized-domain");
    (server, url)
}

/// The WFM of the conformance toolkit, which has the authority of SVIDs as a file.
fn toolkit(mis: &Mis) -> (Program, String) {
    let (cert, key) = mis.mint("toolkit", WFM);
    let ca = mis.file("ca.crt");
    let (mut server, url) = program::serve(
        "wfm.py",
        &[&"--mode", &"toolkit", &"--port", &"0", &"--cert", &cert, &"--key", &key, &"--ca", &ca],
    );
    server.next("its last check", |line| line["check"] == "ca");
    (server, url)
}

fn connected(client: &mut Program, serial: &str) {
    let line = client.next("a connection", |line| line["connection"].is_u64());
    let seen = [&line["result"], &line["peer"], &line["status"], &line["serial"]];
    assert_eq!(seen, [&json!("accepted"), &json!(WFM), &json!(200), &json!(serial)], "{line:#}");
    assert!(line["body"].as_str().unwrap().contains("deployments"), "{line:#}");
}

fn refused_at_start(mut client: Program, check: &str) {
    assert_eq!(client.end(), REFUSED_AT_START, "{:#?}", client.said());
    let last = client.said().last().unwrap();
    assert_eq!((&last["check"], &last["result"]), (&json!(check), &json!("refused")), "{last:#}");
}

#[test]
fn released_client_runs_on_the_files_of_the_agent() {
    let mut world = World::of(Mis::start());
    world.device.start();
    let first = world.enroll(CLIENT);
    let (mut symphony, symphony_url) = symphony(&world.mis, &[CLIENT]);
    let (mut toolkit, toolkit_url) = toolkit(&world.mis);
    let files = Files::of(&world);

    let mut running = files.client_of_mis(&world.mis, &symphony_url, &["--stay"]);
    connected(&mut running, &first);
    let seen = symphony.next("the connection", |line| line["connection"].is_u64());
    assert_eq!((&seen["peer"], &seen["serial"]), (&json!(CLIENT), &json!(first)), "{seen:#}");
    let mut other = files.client_of_file(&toolkit_url, &[]);
    connected(&mut other, &first);
    assert_eq!(other.end(), 0);
    let seen = toolkit.next("the connection", |line| line["connection"].is_u64());
    assert_eq!((&seen["peer"], &seen["serial"]), (&json!(CLIENT), &json!(first)), "{seen:#}");

    // Renewed by hand, with a new key. What runs has what it read at its start; what is started again
    // has the new SVID (by the unit of `notify`, on a device).
    let second = world.enroll(CLIENT);
    assert_ne!(first, second);
    running.ask();
    connected(&mut running, &first);
    assert_eq!(running.end(), 0);
    let mut running = files.client_of_mis(&world.mis, &symphony_url, &["--stay"]);
    connected(&mut running, &second);
    // And none of them sees that the list, which is the same, was published once more.
    assert!(running.said().iter().all(|line| line["event"] != "authorized"), "{:#?}", running.said());

    // The client of another WFM now: the list is followed without a restart, and the WFM of before is
    // none to speak with any more.
    world.enroll("spiffe://margo.org/margo/wfm/wfm-2/client/line-7");
    let event = running.next("the new list", |line| line["event"] == "authorized");
    let other = "spiffe://margo.org/margo/wfm/wfm-2";
    assert_eq!((&event["result"], &event["authorized"]), (&json!("replaced"), &json!([other])), "{event:#}");
    running.ask();
    let line = running.next("a connection", |line| line["connection"].is_u64());
    assert_eq!((&line["result"], &line["check"]), (&json!("refused"), &json!("peer-allow-list")), "{line:#}");
    assert_eq!(running.end(), REFUSED_PEER);
}

#[test]
fn intermediate_is_published_for_released_clients_if_configured() {
    const WARNING: &str = "the WFM client that Margo has released does not start with it";
    let mut world = World::of(Mis::start());
    world.device.start();
    let intermediate = intermediate(&world);
    let leaf = sign(&intermediate, &world.csr(CLIENT), &intermediate);
    let chain = world.device.path("chain.pem");
    let pem = |path: &Path| fs::read_to_string(path).unwrap();
    fs::write(&chain, pem(&leaf) + &pem(&intermediate.join("ca.crt"))).unwrap();
    let serial = world.install(&chain);
    let (_symphony, symphony) = symphony(&world.mis, &[CLIENT]);
    let (_toolkit, toolkit) = toolkit(&world.mis);
    let files = Files::of(&world);

    // Peers take the chain; the client itself does not start with it, and the agent has said so.
    refused_at_start(files.client_of_file(&symphony, &[]), "chain");
    world.device.wait_until("a warning", |device| device.log().contains(WARNING));
    assert_eq!(world.device.log().matches(WARNING).count(), 1, "{}", world.device.log());
    assert!(world.device.log().contains("publish_intermediates"), "{}", world.device.log());

    world.configure(&world.discovery(), &format!("{IDENTITY}publish_intermediates = true\n"));
    world.device.signal("HUP");
    let keys = |path: &Path| {
        let bundle: Value =
            serde_json::from_str(&fs::read_to_string(path).unwrap_or_default()).unwrap_or_default();
        bundle["keys"].as_array().map_or(0, Vec::len)
    };
    world.device.wait_until("both keys", |_| keys(&files.bundle) == 2);
    for wfm in [&symphony, &toolkit] {
        let mut client = files.client_of_file(wfm, &[]);
        connected(&mut client, &serial);
        assert_eq!(client.end(), 0);
    }
    // The bundle of the MIS goes before the file, and has the root alone: such a client is not to be
    // given an MIS that it reaches.
    refused_at_start(files.client_of_mis(&world.mis, &symphony, &[]), "chain");
}

/// A directory with an intermediate authority of the MIS, in the form that it has its own.
fn intermediate(world: &World) -> PathBuf {
    let dir = world.device.path("intermediate");
    fs::create_dir(&dir).unwrap();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let of_root = |name: &str| world.mis.file(name).to_str().unwrap().to_owned();
    let extensions = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n\
                      subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n";
    fs::write(path("extensions"), extensions).unwrap();
    openssl(&[
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/O=Margo/CN=issuing",
        "-keyout",
        &path("ca.key"),
        "-out",
        &path("ca.csr"),
    ]);
    openssl(&[
        "x509",
        "-req",
        "-days",
        "30",
        "-in",
        &path("ca.csr"),
        "-CA",
        &of_root("ca.crt"),
        "-CAkey",
        &of_root("ca.key"),
        "-CAserial",
        &path("ca.srl"),
        "-CAcreateserial",
        "-extfile",
        &path("extensions"),
        "-out",
        &path("ca.crt"),
    ]);
    dir
}

#[test]
fn ca_file_that_the_released_client_refuses_is_warned_of() {
    const WARNING: &str = "the WFM client that Margo has released would refuse it";
    let mut world = World::of(Mis::start_with(ca_without_crl_sign, &["--url-host", "127.0.0.1"]));
    world.device.start();
    let serial = world.enroll(CLIENT);
    world.device.wait_until("a warning", |device| device.log().contains(WARNING));
    assert!(world.device.log().contains("lacks cRLSign"), "{}", world.device.log());
    let (_wfm, url) = toolkit(&world.mis);
    let files = Files::of(&world);
    refused_at_start(files.client_of_mis(&world.mis, &url, &[]), "https-ca");
    let mut client = files.client_of_file(&url, &[]);
    connected(&mut client, &serial);

    // Once for a fault, however often the file is checked.
    world.run(&["retry"]);
    world.wait_for_client("its state", |client| client["state"] == "active");
    assert_eq!(world.device.log().matches(WARNING).count(), 1, "{}", world.device.log());
    // No warning where no such client can be: the key is in the TPM, or no program has the file.
    let quiet = "[[identity]]\nname = \"wfm-client\"\nenroll = \"manual\"\nkey.provider = \"tpm\"\n";
    world.configure(&world.discovery(), quiet);
    world.device.stop();
    world.device.start();
    world.wait_for_client("its state", |client| client["state"].is_string());
    assert_eq!(world.device.log().matches(WARNING).count(), 1, "{}", world.device.log());
}

/// An `https-ca.crt` as many servers have it, in this directory of an MIS.
fn ca_without_crl_sign(dir: &Path) {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "30",
        "-subj",
        "/CN=web",
        "-addext",
        "keyUsage=critical,keyCertSign",
        "-keyout",
        &path("https-ca.key"),
        "-out",
        &path("https-ca.crt"),
    ]);
}

#[test]
fn svid_of_a_device_is_refused_by_all_released_programs() {
    let site = Site::start();
    let (device, mis, id) = (&site.device, &site.mis, &site.client);
    let files = |name: &str| site.files(name);

    // WFMs with the bundle that the agent publishes, and an SVID of the same MIS.
    let (cert, key) = mis.mint_wfm("wfm-1").unwrap();
    let (bundle, anchors) = (&files("device").bundle, site.published("device", "bundle.pem"));
    let list = device.path("clients.json");
    fs::write(&list, json!([id]).to_string()).unwrap();
    let (mut symphony, symphony_url) = program::serve(
        "wfm.py",
        &[
            &"--mode",
            &"symphony",
            &"--port",
            &"0",
            &"--cert",
            &cert,
            &"--key",
            &key,
            &"--bundle",
            bundle,
            &"--authz",
            &list,
        ],
    );
    let (mut toolkit, toolkit_url) = program::serve(
        "wfm.py",
        &[&"--mode", &"toolkit", &"--port", &"0", &"--cert", &cert, &"--key", &key, &"--ca", &anchors],
    );
    for (wfm, url) in [(&mut symphony, &symphony_url), (&mut toolkit, &toolkit_url)] {
        // The client that is given the device's files does not start, and the WFM hears nothing of it.
        refused_at_start(files("device").client_of_file(url, &[]), "certificate");
        // The device's SVID on the wire: a program that does not look at it first.
        let device = files("device");
        let curl = Command::new("curl")
            .args(["--silent", "--show-error", "--insecure", "--noproxy", "*", "--cert"])
            .arg(&device.cert)
            .arg("--key")
            .arg(&device.key)
            .arg(format!("{url}{BASE}/api/v1/deployments"))
            .output()
            .unwrap();
        assert!(!curl.status.success(), "{}", String::from_utf8_lossy(&curl.stdout));
        let line = wfm.next("a connection", |line| line["connection"].is_u64());
        assert_eq!((&line["connection"], &line["result"]), (&json!(1), &json!("refused")), "{line:#}");
        assert_eq!(line["check"], "peer-form", "{line:#}");
        // The same client with the other identity is served.
        let mut client = files("wfm-client").client_of_file(url, &[]);
        let line = client.next("a connection", |line| line["connection"].is_u64());
        assert_eq!((&line["result"], &line["status"]), (&json!("accepted"), &json!(200)), "{line:#}");
        wfm.next("the connection", |line| line["peer"] == id.as_str() && line["result"] == "accepted");
    }
}

/// A device with a development MIS by v0: its own identity, and that of a released client.
struct Site {
    device: Device,
    mis: development_mis::Mis,
    /// The SPIFFE ID of the client.
    client: String,
    keys: TempDir,
    _directory: TempDir,
}

impl Site {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings =
            development_mis::Settings { directory: directory.path().join("mis"), ..Default::default() };
        let mis = development_mis::Mis::start(settings).unwrap();
        let keys = tempfile::tempdir_in("/dev/shm").unwrap();
        let device = Device::new(&format!(
            "state_dir = \"{{dir}}/state\"\n\
             [mis]\ndiscovery_url = \"{}\"\n[mis.trust]\nca_file = \"{}\"\n\
             [bootstrap]\ncert_file = \"{}\"\nkey = \"file:{}\"\n\
             [key]\nprovider = \"software\"\n[files]\nsoftware_key_dir = \"{}\"\n\
             [socket]\npath = \"{{dir}}/run/agent.sock\"\n\
             [[identity]]\nname = \"device\"\nenroll = \"factory-cert\"\n{IDENTITY}",
            mis.discovery_url(),
            mis.ca_file().display(),
            mis.factory_cert().display(),
            mis.factory_key().display(),
            keys.path().join("keys").display(),
        ));
        let client = format!("spiffe://{}/margo/wfm/wfm-1/client/line-7", mis.trust_domain());
        let mut site = Self { device, mis, client, keys, _directory: directory };
        site.device.start();
        site.device.wait_for("active");
        let csr = site.device.run(&["csr", "--identity", "wfm-client", "--spiffe-id", &site.client]);
        let chain = site.device.path("chain.pem");
        fs::write(&chain, site.mis.mint(&MintSpec::csr(csr.stdout)).unwrap().chain_pem).unwrap();
        let installed = site.device.run(&["install", "--identity", "wfm-client", chain.to_str().unwrap()]);
        assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
        site.device.wait_until("the files of both", |_| {
            let has_key = |name: &&str| site.published(name, "key.pem").exists();
            ["device", "wfm-client"].iter().all(has_key) && site.authorized().exists()
        });
        site
    }

    fn published(&self, name: &str, file: &str) -> PathBuf {
        self.keys.path().join("keys").join(name).join("current").join(file)
    }

    fn authorized(&self) -> PathBuf {
        self.device.path("state/svid/wfm-client/authorized.json")
    }

    fn files(&self, name: &str) -> Files {
        Files {
            cert: self.published(name, "svid.pem"),
            key: self.published(name, "key.pem"),
            bundle: self.published(name, "bundle.json"),
            authorized: self.authorized(),
        }
    }
}

/// `examples/wfm_client.py`, with the files of an identity: what it prints, or why it refuses.
fn example(site: &Site, name: &str, url: &str) -> Result<String, String> {
    let output = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/wfm_client.py"))
        .arg("--svid")
        .arg(site.published(name, "svid.pem").parent().unwrap())
        .arg("--authorized")
        .arg(site.authorized())
        .arg(url)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[test]
fn client_of_the_demo_passes_as_the_released_one() {
    let site = Site::start();
    let (chain, key) = site.mis.mint_wfm("wfm-1").unwrap();
    let mut settings =
        Settings::new(Credential::new(chain, key), site.mis.bundle_file().unwrap(), site.mis.url());
    settings.base_path = BASE.to_owned();
    let wfm = Wfm::start(settings).unwrap();
    wfm.accept(&site.client);
    let served = example(&site, "wfm-client", wfm.url()).unwrap();
    let served: Value = serde_json::from_str(&served).unwrap();
    assert!(served["deployments"].is_array(), "{served}");
    let refused = example(&site, "device", wfm.url()).unwrap_err();
    assert!(refused.contains("the WFM responds with 403"), "{refused}");

    // On the same files, the released client's checks.
    let authority = wfm.url().strip_suffix(BASE).unwrap();
    let mut released = site.files("wfm-client").client_of_file(authority, &[]);
    let line = released.next("a connection", |line| line["connection"].is_u64());
    assert_eq!((&line["result"], &line["status"]), (&json!("accepted"), &json!(200)), "{line:#}");
    let served_to: Vec<_> = wfm
        .journal()
        .into_iter()
        .filter(|entry| entry.status == Some(200))
        .map(|entry| entry.client)
        .collect();
    assert_eq!(served_to.len(), 2);
    assert!(served_to.iter().all(|client| format!("{client:?}").contains(&site.client)), "{served_to:?}");

    // A server that is not its WFM gets no byte of a request.
    let own = MintSpec::new("spiffe://factory.example/margo/wfm/wfm-1");
    let other = MintSpec::new("spiffe://factory.example/margo/wfm/wfm-2");
    let bent = |faults: Vec<SvidFault>| MintSpec { faults, ..own.clone() };
    let device = "spiffe://factory.example/margo/device/11111111-1111-4111-8111-111111111111";
    let before = wfm.application_bytes();
    for (nth, (spec, says)) in [
        (other, "wfm-2"),
        (bent(vec![SvidFault::SpiffeId(device.to_owned())]), "/margo/device/"),
        (bent(vec![SvidFault::TwoUriSans]), "the server is ["),
        (bent(vec![SvidFault::NoUriSan]), "the server is []"),
        (bent(vec![SvidFault::UnknownIssuer]), "CERTIFICATE_VERIFY_FAILED"),
        (bent(vec![SvidFault::Expired]), "CERTIFICATE_VERIFY_FAILED"),
        (bent(vec![SvidFault::NotYetValid(Duration::from_secs(3600))]), "CERTIFICATE_VERIFY_FAILED"),
        (bent(vec![SvidFault::CaTrue]), "that of an issuer"),
        (bent(vec![SvidFault::KeyCertSign]), "that of an issuer"),
        (bent(vec![SvidFault::CrlSign]), "that of an issuer"),
    ]
    .into_iter()
    .enumerate()
    {
        let (chain, key) = site.mis.mint_files(&format!("shown-{nth}"), &spec).unwrap();
        wfm.show(Credential::new(chain, key));
        let refused = example(&site, "wfm-client", wfm.url()).unwrap_err();
        assert!(refused.contains(says), "{says}: {refused}");
        assert_eq!(wfm.application_bytes(), before, "{says}");
    }
    wfm.show_own();
    example(&site, "wfm-client", wfm.url()).unwrap();
}
