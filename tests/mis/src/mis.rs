//! The handle: starts the server on a thread of its own and steers it from any other.

use crate::binding::Used;
use crate::est::{AdminSocket, Domain, Est, State};
use crate::faults::{Endpoint, Fault, Faults, ServerFault};
use crate::journal::{ClientKind, Entry, Journal};
use crate::mint::{self, MintSpec, Minted};
use crate::pem;
use crate::pki::{AnchorStep, FactorySpec, IssuerAlgorithm, IssuingMode, Pki, PkiSpec};
use crate::policy::{Documents, Policy, esi};
use crate::registry::Registry;
use crate::server::{self, Observer, Shared};
use crate::service::Service;
use crate::tls;
use crate::wire::DISCOVERY_PATH;
use development_server::{Bound, Connection, Context, Error, Result, Server, lock};
use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_rustls::TlsAcceptor;

/// How to start.
#[derive(Clone)]
pub struct Settings {
    /// Holds keys, certificates and bindings; made where missing, used again where not.
    pub directory: PathBuf,
    /// Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Names and addresses of the server's certificate; the first one is in its URLs.
    pub hosts: Vec<String>,
    /// The Trust Domain.
    pub trust_domain: String,
    /// Root or intermediate mode.
    pub mode: IssuingMode,
    /// Algorithm of the issuing authorities.
    pub algorithm: IssuerAlgorithm,
    /// `spiffe_sequence` in a new directory.
    pub first_sequence: u64,
    /// PEM files with manufacturer CAs in addition to the directory's own.
    pub factory_cas: Vec<PathBuf>,
    /// Further sample devices to make where they are missing: `factory-NAME.pem` and `.key`.
    pub devices: Vec<String>,
    /// Devices with an external key, as a PEM file of the public key: `factory-NAME.pem`.
    pub certify: Vec<(String, PathBuf)>,
    /// What is wrong with the server's certificate.
    pub server_fault: Option<ServerFault>,
    /// Offers session resumption, which no client of EST may take across kinds of requests (X28).
    pub offer_resumption: bool,
    /// The operator's decisions at the start.
    pub policy: Policy,
    /// Called with every finished request, from the server's thread.
    pub observer: Option<Observer>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            directory: PathBuf::new(),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            // By address: not every machine can resolve "localhost".
            hosts: ["127.0.0.1", "localhost", "::1"].map(str::to_owned).to_vec(),
            trust_domain: "factory.example".to_owned(),
            mode: IssuingMode::Root,
            algorithm: IssuerAlgorithm::P256,
            first_sequence: 1,
            factory_cas: Vec::new(),
            devices: Vec::new(),
            certify: Vec::new(),
            server_fault: None,
            offer_resumption: false,
            policy: Policy::default(),
            observer: None,
        }
    }
}

impl Settings {
    fn pki(&self) -> Result<Pki> {
        if self.directory.as_os_str().is_empty() {
            return Err(Error::new("no directory given"));
        }
        if self.hosts.is_empty() {
            return Err(Error::new("the server needs at least one host name"));
        }
        if self.policy.documents == Documents::V0 && !self.algorithm.is_of_v0() {
            return Err(Error::new(format!("{:?} authorities need the released documents", self.algorithm)));
        }
        let pki = Pki::open(&PkiSpec {
            directory: &self.directory,
            hosts: &self.hosts,
            trust_domain: &self.trust_domain,
            mode: self.mode,
            algorithm: self.algorithm,
            first_sequence: self.first_sequence,
            factory_cas: &self.factory_cas,
            server_fault: self.server_fault.as_ref(),
        })?;
        for name in self.devices.iter().filter(|name| !pki.has_credential(name)) {
            pki.new_credential(name, &FactorySpec::default())?;
        }
        // Made once: a new certificate would be a new ESI, and so another device (E5).
        for (name, file) in self.certify.iter().filter(|(name, _)| !pki.has_credential(name)) {
            let text = fs::read(file).context(file.display())?;
            let spki = pem::public_key(&text).context(file.display())?;
            pki.certify(name, &spki, &FactorySpec::default())?;
        }
        Ok(pki)
    }

    fn base(&self, port: u16) -> String {
        match self.hosts.first() {
            Some(host) if host.contains(':') => format!("https://[{host}]:{port}"),
            Some(host) => format!("https://{host}:{port}"),
            None => format!("https://127.0.0.1:{port}"),
        }
    }
}

/// A device or a WFM Client that has an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Of its bootstrap credential or its binding (W5), lowercase hexadecimal.
    pub esi: String,
    /// Its SPIFFE ID.
    pub ldi: String,
    /// SHA-256 of the SubjectPublicKeyInfo certified last, lowercase hexadecimal.
    pub key_sha256: String,
}

impl Device {
    fn is_device(&self) -> bool {
        self.ldi.contains("/margo/device/")
    }
}

/// A running development MIS. Dropping it ends it; the directory stays.
pub struct Mis {
    directory: PathBuf,
    service: Arc<Service>,
    server: Server,
    _admin: Option<AdminSocket>,
}

impl Mis {
    /// Makes or loads the directory and starts to serve. The port accepts connections on return.
    pub fn start(settings: Settings) -> Result<Self> {
        let pki = settings.pki()?;
        let registry = Registry::open(settings.directory.join("bindings.json"))?;
        let bound = Bound::new(settings.listen)?;
        let own =
            Domain { label: settings.trust_domain.clone(), trust_domain: settings.trust_domain.clone() };
        let service = Arc::new(Service {
            est: Mutex::new(State::open(settings.directory.join("est.json"), own)?),
            base: settings.base(bound.port()),
            trust_domain: settings.trust_domain,
            policy: Mutex::new(settings.policy),
            pki: Mutex::new(pki),
            registry: Mutex::new(registry),
            used: Mutex::new(Used::open(settings.directory.join("used-assertions.json"))?),
            faults: Mutex::new(Faults::default()),
            journal: Journal::default(),
            served: Mutex::new(HashMap::new()),
        });
        let shared = Arc::new(Shared {
            tls: TlsAcceptor::from(tls::config(
                &service,
                &rustls::version::TLS13,
                settings.offer_resumption,
            )?),
            tls12: TlsAcceptor::from(tls::config(
                &service,
                &rustls::version::TLS12,
                settings.offer_resumption,
            )?),
            service: Arc::clone(&service),
            observer: settings.observer,
        });
        let serve = move |stream| server::connection(Arc::clone(&shared), stream);
        let server = bound.serve("development-mis", serve)?;
        let admin = AdminSocket::open(&settings.directory, Arc::clone(&service))
            .inspect_err(|error| eprintln!("development-mis: no admin socket: {error}"));
        Ok(Self { directory: settings.directory, service, server, _admin: admin.ok() })
    }

    /// Makes or completes the directory, and serves nothing.
    pub fn make_directory(settings: &Settings) -> Result<()> {
        settings.pki().map(drop)
    }

    /// `https://127.0.0.1:PORT`, the base URI of the APIs.
    pub fn url(&self) -> String {
        self.service.base.clone()
    }

    /// The operator's interface of the EST server.
    pub fn est(&self) -> Est<'_> {
        Est(&self.service)
    }

    /// The EST endpoint of the MIS's own Trust Domain.
    pub fn est_url(&self) -> String {
        self.est().url()
    }

    /// The URL of the discovery document.
    pub fn discovery_url(&self) -> String {
        format!("{}{DISCOVERY_PATH}", self.service.base)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The Trust Domain's name.
    pub fn trust_domain(&self) -> &str {
        &self.service.trust_domain
    }

    /// Where everything lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The CA of the server's own certificate: a device's initial trust (T1).
    pub fn ca_file(&self) -> PathBuf {
        self.directory.join("tls-ca.pem")
    }

    /// The server's certificate, for pins.
    pub fn server_cert(&self) -> PathBuf {
        self.directory.join("tls.pem")
    }

    /// The sample device's certificate, leaf then intermediate.
    pub fn factory_cert(&self) -> PathBuf {
        self.directory.join("factory.pem")
    }

    /// The sample device's key, PKCS#8.
    pub fn factory_key(&self) -> PathBuf {
        self.directory.join("factory.key")
    }

    /// Another device: certificate file and key file.
    pub fn new_factory_credential(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        self.new_factory_credential_as(name, &FactorySpec::default())
    }

    /// The same with a say in key, lifetime and manufacturer.
    pub fn new_factory_credential_as(&self, name: &str, spec: &FactorySpec) -> Result<(PathBuf, PathBuf)> {
        lock(&self.service.pki).new_credential(name, spec)
    }

    /// A device credential for an external key (in a TPM), given as DER
    /// SubjectPublicKeyInfo: the certificate file.
    pub fn certify_factory_key(&self, name: &str, spki: &[u8]) -> Result<PathBuf> {
        lock(&self.service.pki).certify(name, spki, &FactorySpec::default())
    }

    /// Reads or changes policy.
    pub fn policy<T>(&self, change: impl FnOnce(&mut Policy) -> T) -> T {
        change(&mut lock(&self.service.policy))
    }

    /// Admits the device with this certificate file (leaf first), where admission is pending.
    pub fn admit(&self, factory_cert: &Path) -> Result<()> {
        let leaf = leaf_of(factory_cert)?;
        lock(&self.service.policy).admission.admit(&leaf);
        Ok(())
    }

    /// Mints an SVID as the operator's command does.
    pub fn mint(&self, spec: &MintSpec) -> Result<Minted> {
        mint::mint(&self.directory, spec)
    }

    /// Mints the SVID of a WFM into the directory: chain file and key file.
    pub fn mint_wfm(&self, wfm_id: &str) -> Result<(PathBuf, PathBuf)> {
        let id = format!("spiffe://{}/margo/wfm/{wfm_id}", self.trust_domain());
        self.mint_files(&format!("wfm-{wfm_id}"), &MintSpec::new(id))
    }

    /// Mints the SVID of a WFM Client into the directory, for the installed mode: chain file and
    /// key file.
    pub fn mint_wfm_client(&self, wfm_id: &str, client_id: &str) -> Result<(PathBuf, PathBuf)> {
        let id = format!("spiffe://{}/margo/wfm/{wfm_id}/client/{client_id}", self.trust_domain());
        self.mint_files(&format!("wfm-{wfm_id}-client-{client_id}"), &MintSpec::new(id))
    }

    /// Mints an SVID into `NAME.pem` and, where it has a new key, `NAME.key` in the directory.
    pub fn mint_files(&self, name: &str, spec: &MintSpec) -> Result<(PathBuf, PathBuf)> {
        let chain = self.directory.join(format!("{name}.pem"));
        let key = self.directory.join(format!("{name}.key"));
        self.mint(spec)?.write(&chain, Some(&key))?;
        Ok((chain, key))
    }

    /// Writes the Trust Bundle as it is now, in the released form, to `bundle.json` in the
    /// directory: for an agent or a WFM that has it as a file.
    pub fn bundle_file(&self) -> Result<PathBuf> {
        let path = self.directory.join("bundle.json");
        crate::pki::replace(&path, mint::bundle_of(&self.directory)?.as_bytes())?;
        Ok(path)
    }

    /// The WFM Clients that have an identity by binding assertion.
    pub fn wfm_clients(&self) -> Vec<Device> {
        self.identities().into_iter().filter(|one| !one.is_device()).collect()
    }

    /// The devices that have an identity.
    pub fn devices(&self) -> Vec<Device> {
        self.identities().into_iter().filter(Device::is_device).collect()
    }

    fn identities(&self) -> Vec<Device> {
        lock(&self.service.registry)
            .identities()
            .iter()
            .map(|one| Device {
                esi: one.esi.clone(),
                ldi: one.ldi.clone(),
                key_sha256: one.key_sha256.clone(),
            })
            .collect()
    }

    /// The device with this certificate file, if it has an identity.
    pub fn device(&self, factory_cert: &Path) -> Result<Option<Device>> {
        let esi = esi(&leaf_of(factory_cert)?);
        Ok(self.devices().into_iter().find(|device| device.esi == esi))
    }

    /// Forgets every device and WFM Client, as an MIS restored from too old a backup would (E9).
    pub fn forget_devices(&self) -> Result<()> {
        lock(&self.service.registry).forget()
    }

    /// Makes every SVID issued so far unusable for renewal: `401` (R6).
    pub fn invalidate_svids(&self) -> Result<()> {
        lock(&self.service.registry).invalidate_svids()
    }

    /// One step of an anchor rotation (B4).
    pub fn rotate_anchors(&self, step: AnchorStep) -> Result<()> {
        lock(&self.service.pki).rotate(step)
    }

    /// `spiffe_sequence` as served now.
    pub fn sequence(&self) -> u64 {
        lock(&self.service.pki).sequence()
    }

    /// Sets `spiffe_sequence` (B5).
    pub fn set_sequence(&self, sequence: u64) -> Result<()> {
        lock(&self.service.pki).set_sequence(sequence)
    }

    /// Every request so far, oldest first.
    pub fn journal(&self) -> Vec<Entry> {
        self.service.journal.entries()
    }

    /// Waits until the journal is as wanted, and returns it; `None` when `limit` is over. Checks
    /// again at every request that comes in and every response that goes out.
    pub fn wait_for(&self, limit: Duration, done: impl FnMut(&[Entry]) -> bool) -> Option<Vec<Entry>> {
        self.service.journal.wait(limit, done)
    }

    /// Every connection so far whose handshake succeeded, oldest first.
    pub fn connections(&self) -> Vec<Connection<ClientKind>> {
        self.service.journal.connections()
    }

    /// Waits until the connections are as wanted, and returns them; `None` when `limit` is over.
    pub fn wait_for_connections(
        &self,
        limit: Duration,
        done: impl FnMut(&[Connection<ClientKind>]) -> bool,
    ) -> Option<Vec<Connection<ClientKind>>> {
        self.service.journal.wait_connections(limit, done)
    }

    /// Why TLS handshakes failed, oldest first.
    pub fn refused_handshakes(&self) -> Vec<String> {
        self.service.journal.refused_handshakes()
    }

    /// Waits for so many failed handshakes, and returns why they failed; `None` when `limit` is
    /// over. (A client may see its alert before the server has noted it.)
    pub fn wait_for_refused_handshakes(&self, limit: Duration, count: usize) -> Option<Vec<String>> {
        self.service.journal.wait_refused(limit, count)
    }

    /// Does this wrong, once, at the next request to the endpoint (after earlier ones).
    pub fn fault(&self, endpoint: Endpoint, fault: Fault) {
        lock(&self.service.faults).once(endpoint, fault);
    }

    /// Does this wrong at every request to the endpoint that has no one-shot fault.
    pub fn sticky_fault(&self, endpoint: Endpoint, fault: Fault) {
        lock(&self.service.faults).sticky(endpoint, fault);
    }

    /// Does nothing wrong any more.
    pub fn clear_faults(&self) {
        lock(&self.service.faults).clear();
    }

    /// One-shot faults that no request has met yet.
    pub fn waiting_faults(&self) -> usize {
        lock(&self.service.faults).waiting()
    }

    /// An outage: the port is closed and every connection is cut on return.
    pub fn stop_listening(&self) -> Result<()> {
        self.server.stop_listening()
    }

    /// The end of an outage: the same port accepts connections again on return.
    pub fn resume(&self) -> Result<()> {
        self.server.resume()
    }
}

fn leaf_of(path: &Path) -> Result<Vec<u8>> {
    let text = fs::read(path).context(path.display())?;
    Ok(pem::certificates(&text).context(path.display())?.swap_remove(0))
}
