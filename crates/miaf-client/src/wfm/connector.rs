//! Opens TLS connections as an identity.

use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection, Error as TlsError};

use miaf_spiffe::peer::{ExpectedPeer, validate_peer};
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::time::Timestamp;
use miaf_spiffe::{Bundle, SpiffeId};

use super::connection::{Connection, handshake};
use super::life::Life;
use super::{ConnectError, PeerVerifier, wfm_of};
use crate::api::IdentityName;
use crate::{Client, ClientError};

/// Time limit of a handshake, and of each read and write.
const LIMIT: Duration = Duration::from_secs(20);
/// Characters of an address in a message.
const MAX_ADDRESS: usize = 128;

/// Opens TLS connections as one identity to the WFM of its own SVID, or to a given peer. The key
/// stays in the agent. Each connection is made with the SVID and the trust bundle of that moment;
/// sessions are never resumed, and no early data is sent.
#[derive(Clone, Debug)]
pub struct Connector {
    agent: Client,
    peer: Option<SpiffeId>,
    limit: Duration,
}

/// What a connection is opened with: all of one moment.
pub(super) struct Session {
    config: ClientConfig,
    expected: ExpectedPeer,
    bundle: Arc<Bundle>,
    life: Life,
    /// Client for the identity, by name.
    agent: Client,
}

impl Connector {
    /// A connector as the identity that `agent` selects ([`Client::with_identity`]), or as the
    /// default identity, to its WFM. `agent` is a client of the signing socket.
    pub fn new(agent: Client) -> Self {
        Self { agent, peer: None, limit: LIMIT }
    }

    /// Sets the peer, instead of the WFM of the own SVID. It has to be in the same trust domain.
    #[must_use]
    pub fn with_peer(self, peer: SpiffeId) -> Self {
        Self { peer: Some(peer), ..self }
    }

    /// Sets the time limit of a handshake, and of each read and write, instead of 20 seconds.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Returns a configuration of rustls for one connection, for programs that have their own
    /// sockets: TLS 1.3 only, no resumption, no early data. Ask for another one for every
    /// connection, and end each after an hour, and when [`Client::watch`] reports another SVID or
    /// bundle: [`connect`](Self::connect) does.
    ///
    /// # Errors
    /// [`ConnectError`]: of the agent, or the identity is none to connect with.
    pub fn client_config(&self) -> Result<ClientConfig, ConnectError> {
        self.session().map(|session| session.config)
    }

    /// Opens a connection to the peer at this host, whose name proves nothing, and completes the
    /// TLS handshake.
    ///
    /// # Errors
    /// [`ConnectError`]. [`ConnectError::Peer`] tells a peer that is not the expected one, one that
    /// is not trusted, and one that has expired, apart.
    pub fn connect(&self, host: &str, port: u16) -> Result<Connection, ConnectError> {
        let address = Excerpt::of(format_args!("{host}:{port}"), MAX_ADDRESS);
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|_| ConnectError::NotAHost(Excerpt::of(host, MAX_ADDRESS)))?;
        let until = Instant::now().checked_add(self.limit).unwrap_or_else(Instant::now);
        let Session { config, expected, bundle, life, agent } = self.session()?;
        let of_tls = |error: TlsError| ConnectError::of_handshake(address.clone(), error);
        let mut tls = ClientConnection::new(Arc::new(config), name).map_err(of_tls)?;
        let unreachable = |e| ConnectError::Unreachable(address.clone(), e);
        let mut tcp = dial(bare, port, until).map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        handshake(&mut tls, &mut tcp, until, self.limit, &address)?;
        let peer = validate_peer(tls.peer_certificates().unwrap_or_default(), &expected, &bundle, now())
            .map_err(|why| ConnectError::Peer(address.clone(), why))?;
        let life = life.with_peer(peer.not_after);
        Ok(Connection::new(tls, tcp, peer, life, agent, self.limit))
    }

    fn session(&self) -> Result<Session, ConnectError> {
        let state = self.agent.state()?;
        let selected = state.status.identity(self.agent.identity()).map(|identity| &identity.name);
        let name = selected.cloned().ok_or_else(|| unknown(self.agent.identity()))?;
        let own = state.svids.iter().find(|svid| svid.identity == name);
        let own = own.ok_or_else(|| ConnectError::NoSvid(name.clone()))?;
        if now() > own.not_after {
            return Err(ConnectError::OwnSvidExpired(name, own.not_after));
        }
        let id = SpiffeId::parse(&own.spiffe_id).map_err(|e| ClientError::unintelligible(&e))?;
        let expected = match &self.peer {
            Some(peer) => peer.clone(),
            None => wfm_of(own).map_err(ConnectError::NotAWfmClient)?,
        };
        let document = state.bundle.as_ref().ok_or(ConnectError::NoBundle)?;
        let bundle = crate::rustls::bundle_of(document, id.trust_domain())?;
        let expected = ExpectedPeer::SpiffeId(expected);
        let bundle = Arc::new(bundle);
        let verifier = PeerVerifier::new(expected.clone(), Arc::clone(&bundle));
        let agent = self.agent.clone().with_identity(name);
        let own_key = SingleCertAndKey::from(agent.certified_key_of(own)?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| ConnectError::Tls(Excerpt::default(), e))?
            .dangerous() // for a verifier that checks a SPIFFE ID, not a name
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(own_key));
        // A resumed session would keep an old identity, and would not look at the peer's again.
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(Session { config, expected, bundle, life: Life::of(own, document), agent })
    }
}

fn unknown(name: Option<&IdentityName>) -> ConnectError {
    ClientError::unknown_identity(name.unwrap_or(&IdentityName::DEVICE)).into()
}

/// Connects to the first address of the host that responds in time.
fn dial(host: &str, port: u16, until: Instant) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for address in (host, port).to_socket_addrs()? {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(tcp) => return Ok(tcp),
            Err(e) => last = e,
        }
    }
    Err(last)
}

pub(super) fn now() -> Timestamp {
    SystemTime::now().into()
}
