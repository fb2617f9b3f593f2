//! The handle: starts the server on a thread of its own and steers it from any other.

use crate::bundle;
use crate::clients::{self, Name};
use crate::faults::{Endpoint, Fault, Faults};
use crate::journal::{Connection, Entry, Journal};
use crate::policy::Policy;
use crate::server::{self, Observer, Shared};
use crate::service::Service;
use crate::tls::{self, Credential};
use development_server::{Bound, Error, Result, Server, lock};
use rustls::pki_types::UnixTime;
use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_rustls::TlsAcceptor;

/// How to start.
#[derive(Clone)]
pub struct Settings {
    /// The WFM's SVID; it has the trust domain and the `wfm-id`.
    pub credential: Credential,
    /// The Trust Bundle: a SPIFFE bundle, a Bundle Map, or PEM; read again for each connection.
    pub bundle: PathBuf,
    /// `margoIdentityServiceBaseUri` of the MIS that assertions are for.
    pub mis_base: String,
    /// Port 0 takes any free one.
    pub listen: SocketAddr,
    /// The host in its URL. It proves nothing: clients look at the SVID (N10).
    pub host: String,
    /// Before the paths of the API, such as `/v1alpha2/margo`; empty for none.
    pub base_path: String,
    /// Offers session resumption, which a client must not take.
    pub offer_resumption: bool,
    /// The operator's decisions at the start.
    pub policy: Policy,
    /// Called with every finished request, from the server's thread.
    pub observer: Option<Observer>,
}

impl Settings {
    /// A WFM on a free port of this machine.
    pub fn new(credential: Credential, bundle: impl Into<PathBuf>, mis_base: impl Into<String>) -> Self {
        Self {
            credential,
            bundle: bundle.into(),
            mis_base: mis_base.into(),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            host: "127.0.0.1".to_owned(),
            base_path: String::new(),
            offer_resumption: false,
            policy: Policy::default(),
            observer: None,
        }
    }
}

/// A running development WFM. Dropping it ends it.
pub struct Wfm {
    url: String,
    spiffe_id: String,
    service: Arc<Service>,
    server: Server,
}

impl Wfm {
    /// Starts to serve. The port accepts connections on return.
    ///
    /// # Errors
    ///
    /// A credential that is not a valid SVID of a WFM by the bundle, files that cannot be read, a
    /// port that is in use.
    pub fn start(settings: Settings) -> Result<Self> {
        let (chain, _) = settings.credential.read()?;
        let refuse = |why: String| Error::new(format!("{}: {why}", settings.credential.chain.display()));
        let shown = chain.first().map(|leaf| clients::uris(leaf).concat()).unwrap_or_default();
        let domain = clients::trust_domain(&shown).ok_or_else(|| refuse("no SPIFFE ID".to_owned()))?;
        let anchors = bundle::read(&settings.bundle, domain)?;
        let spiffe_id = clients::verify(&chain, &anchors, domain, UnixTime::now()).map_err(refuse)?;
        let Name::Wfm(wfm_id) = Name::of(&spiffe_id) else {
            return Err(refuse(format!("{spiffe_id:?} is not a WFM")));
        };

        let bound = Bound::new(settings.listen)?;
        let service = Arc::new(Service {
            trust_domain: domain.to_owned(),
            wfm_id,
            own: settings.credential,
            shown: Mutex::new(None),
            bundle: settings.bundle,
            audience: format!("{}/api/v1/identities", settings.mis_base.trim_end_matches('/')),
            policy: Mutex::new(settings.policy),
            faults: Mutex::new(Faults::default()),
            handles: Mutex::new(BTreeMap::new()),
            issued: Mutex::new(HashMap::new()),
            last: Mutex::new(None),
            journal: Journal::default(),
        });
        let config = tls::config(&service, settings.offer_resumption)?;
        let base_path = settings.base_path.trim_end_matches('/').to_owned();
        let url = format!("https://{}:{}{base_path}", settings.host, bound.port());
        let shared = Arc::new(Shared {
            service: Arc::clone(&service),
            base_path,
            observer: settings.observer,
            tls: TlsAcceptor::from(config),
        });
        let serve = move |stream| server::connection(Arc::clone(&shared), stream);
        let server = bound.serve("development-wfm", serve)?;
        Ok(Self { url, spiffe_id, service, server })
    }

    /// `https://127.0.0.1:PORT` and the base path: what an agent has as `wfm.url`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Its SPIFFE ID.
    pub fn spiffe_id(&self) -> &str {
        &self.spiffe_id
    }

    /// The `wfm-id` in it: what an agent has as `wfm.id`.
    pub fn wfm_id(&self) -> &str {
        &self.service.wfm_id
    }

    /// Reads or changes policy.
    pub fn policy<T>(&self, change: impl FnOnce(&mut Policy) -> T) -> T {
        change(&mut lock(&self.service.policy))
    }

    /// Accepts a WFM Client, by its SPIFFE ID.
    pub fn accept(&self, spiffe_id: &str) {
        self.policy(|policy| policy.accepted.insert(spiffe_id.to_owned()));
    }

    /// Shows another certificate in handshakes from now on: the SVID of another WFM, of a device, a
    /// Web PKI certificate.
    pub fn show(&self, credential: Credential) {
        *lock(&self.service.shown) = Some(credential);
    }

    /// Shows its own SVID again.
    pub fn show_own(&self) {
        *lock(&self.service.shown) = None;
    }

    /// Every request so far, oldest first.
    pub fn journal(&self) -> Vec<Entry> {
        self.service.journal.entries()
    }

    /// Every connection so far whose handshake succeeded, oldest first.
    pub fn connections(&self) -> Vec<Connection> {
        self.service.journal.connections()
    }

    /// Bytes of application data received so far, on all connections.
    pub fn application_bytes(&self) -> u64 {
        self.connections().iter().map(|connection| connection.bytes).sum()
    }

    /// Waits until the journal is as wanted, and returns it; `None` when `limit` is over.
    pub fn wait_for(&self, limit: Duration, done: impl FnMut(&[Entry]) -> bool) -> Option<Vec<Entry>> {
        self.service.journal.wait(limit, done)
    }

    /// Waits until the connections are as wanted, and returns them; `None` when `limit` is over.
    pub fn wait_for_connections(
        &self,
        limit: Duration,
        done: impl FnMut(&[Connection]) -> bool,
    ) -> Option<Vec<Connection>> {
        self.service.journal.wait_connections(limit, done)
    }

    /// Why TLS handshakes failed, oldest first.
    pub fn refused_handshakes(&self) -> Vec<String> {
        self.service.journal.refused_handshakes()
    }

    /// Waits for so many failed handshakes, and returns why they failed; `None` when `limit` is
    /// over.
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

    /// Does nothing wrong any more. What [`show`](Self::show) set stays.
    pub fn clear_faults(&self) {
        lock(&self.service.faults).clear();
    }

    /// One-shot faults that no request has met yet.
    pub fn waiting_faults(&self) -> usize {
        lock(&self.service.faults).waiting()
    }

    /// Begins an outage: the port is closed and every connection is cut on return.
    pub fn stop_listening(&self) -> Result<()> {
        self.server.stop_listening()
    }

    /// Ends an outage: the same port accepts connections again on return.
    pub fn resume(&self) -> Result<()> {
        self.server.resume()
    }
}
