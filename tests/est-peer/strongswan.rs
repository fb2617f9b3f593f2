//! strongSwan's `pki --estca` and `pki --est`, a foreign EST client: at the development EST server with its token
//! rules, and at the independent one.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use development_mis::{Mis, Settings};
use tempfile::TempDir;

use crate::server::{EstPeer, ID, SECRET, TABLE, USER};
use crate::world::openssl;

/// The files of a client.
struct Client {
    /// Without `/.well-known/est`, which `pki` appends.
    url: String,
    tls_ca: PathBuf,
    directory: TempDir,
}

impl Client {
    fn of(url: &str, tls_ca: PathBuf) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("strongswan.conf"), "libtls {\n  version_max = 1.3\n}\n").unwrap();
        Self { url: url.to_owned(), tls_ca, directory }
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn pki(&self, arguments: &[&str]) -> std::process::Output {
        Command::new("pki")
            .args(arguments)
            .args(["--url", &self.url, "--cacert"])
            .arg(&self.tls_ca)
            .env("STRONGSWAN_CONF", self.file("strongswan.conf"))
            .current_dir(self.directory.path())
            .output()
            .expect("pki is needed for this test: apt install strongswan-pki")
    }

    /// `pki --estca`: the CA certificates in files, root first.
    fn cacerts(&self) -> Vec<String> {
        let output = self.pki(&["--estca", "--caout", "ca.der"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let further = (1..).map(|number| self.file(&format!("ca-{number}.der")));
        std::iter::once(self.file("ca.der"))
            .chain(further.take_while(|file| fs::exists(file).unwrap()))
            .collect()
    }

    /// A key, and requests of it: one without names, one with a SPIFFE ID as a certificate without subject has it.
    fn key(&self, name: &str, id: &str) -> String {
        let [key, first, again] = ["key", "first", "again"].map(|kind| self.file(&format!("{name}.{kind}")));
        openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &key]);
        let request = ["req", "-new", "-key", &key, "-subj", "/", "-outform", "DER", "-out"];
        openssl(&[&request[..], &[&first]].concat());
        let san = format!("subjectAltName=critical,URI:{id}");
        openssl(&[&request[..], &[&again, "-addext", &san]].concat());
        name.to_owned()
    }

    /// `pki --est`: the serial number of what was issued, or what it says.
    fn est(&self, cas: &[String], more: &[&str]) -> Result<String, String> {
        let mut arguments = vec!["--est", "--outform", "pem"];
        for ca in cas {
            arguments.extend(["--cacert", ca]);
        }
        arguments.extend(more);
        let output = self.pki(&arguments);
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            return Err(says);
        }
        assert!(says.contains("Issued certificate is trusted"), "{says}");
        fs::write(self.file("issued.pem"), &output.stdout).unwrap();
        let serial = self.shown(&["-serial"]);
        Ok(serial.trim().trim_start_matches("serial=").to_lowercase())
    }

    fn enroll(&self, cas: &[String], key: &str, user_pass: &str) -> Result<String, String> {
        self.est(cas, &["--in", &self.file(&format!("{key}.first")), "--userpass", user_pass])
    }

    /// With the certificate issued last, and its key.
    fn renew(&self, cas: &[String], old: &str, key: &str) -> Result<String, String> {
        fs::copy(self.file("issued.pem"), self.file("current.pem")).unwrap();
        let identity = [&self.file("current.pem"), &self.file(&format!("{old}.key"))];
        let request = self.file(&format!("{key}.again"));
        self.est(cas, &["--in", &request, "--cert", identity[0], "--key", identity[1]])
    }

    /// What OpenSSL shows of the certificate issued last.
    fn shown(&self, what: &[&str]) -> String {
        let mut command = Command::new("openssl");
        let output = command.args(["x509", "-noout", "-in", &self.file("issued.pem")]).args(what).output();
        String::from_utf8(output.expect("openssl").stdout).unwrap()
    }

    fn has_id(&self, id: &str) {
        let shown = self.shown(&["-ext", "subjectAltName"]);
        assert!(shown.contains("critical") && shown.contains(&format!("URI:{id}\n")), "{shown}");
    }
}

#[test]
fn strongswan_enrolls_by_the_token_rules_of_the_mis() {
    let directory = tempfile::tempdir().unwrap();
    let mis =
        Mis::start(Settings { directory: directory.path().join("mis"), ..Settings::default() }).unwrap();
    let est = mis.est();
    let id = est.client_id("wfm-1", "line-7");
    let client = Client::of(&mis.url(), mis.ca_file());
    let cas = client.cacerts();
    assert_eq!(cas.len(), 2, "root and intermediate: {cas:?}");
    let (key, other) = (client.key("a", &id), client.key("b", &id));
    let token = est.token(&id).user_pass();

    let first = client.enroll(&cas, &key, &token).unwrap();
    client.has_id(&id);
    // The same key again is a repetition; another key is not (X37, X38).
    client.enroll(&cas, &key, &token).unwrap();
    client.has_id(&id);
    let refused = client.enroll(&cas, &other, &token).unwrap_err();
    assert!(refused.contains("HTTP 401"), "{refused}");

    // Renewal: same key, another key, then again with that. Names that are not the SVID's are refused.
    client.renew(&cas, &key, &key).unwrap();
    client.has_id(&id);
    client.renew(&cas, &key, &other).unwrap();
    let last = client.renew(&cas, &other, &other).unwrap();
    assert_ne!(first, last);
    client.has_id(&id);
    let stranger = client.key("c", &est.client_id("wfm-1", "line-8"));
    let refused = client.renew(&cas, &other, &stranger).unwrap_err();
    assert!(refused.contains("EST request failed"), "{refused}");

    // After the window, and after its end, the token is of no use to anyone.
    est.advance(Duration::from_secs(11 * 60));
    let refused = client.enroll(&cas, &key, &token).unwrap_err();
    assert!(refused.contains("HTTP 401"), "{refused}");
    let unused = est.token(&id).user_pass();
    est.invalidate(unused.split(':').next().unwrap()).unwrap();
    let refused = client.enroll(&cas, &other, &unused).unwrap_err();
    assert!(refused.contains("HTTP 401"), "{refused}");

    let record = est.record();
    assert_eq!(record.len(), 5, "{record:#?}");
    assert!(record.iter().all(|issued| issued.spiffe_id == id));
    assert_eq!(est.violations(), [], "a foreign client does what the agent has to do");
}

#[test]
fn strongswan_enrolls_at_the_independent_server() {
    // It reads responses in one line only.
    let mut peer = EstPeer::start(TABLE, &["--base64", "one-line"]);
    let client = Client::of(&peer.address, peer.file("https-ca.crt"));
    let cas = client.cacerts();
    assert_eq!(cas.len(), 2, "{cas:?}");
    let (key, other) = (client.key("a", ID), client.key("b", ID));
    client.enroll(&cas, &key, &format!("{USER}:{SECRET}")).unwrap();
    client.has_id(ID);
    assert_eq!(peer.next("simpleenroll")["base64"], "one-line");
    client.renew(&cas, &key, &other).unwrap();
    client.has_id(ID);
    let refused = client.enroll(&cas, &key, &format!("{USER}:another")).unwrap_err();
    assert!(refused.contains("HTTP 401"), "{refused}");
}
