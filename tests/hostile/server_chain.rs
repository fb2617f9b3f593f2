//! A server in the place of the MIS that presents certificates without valid signatures: what they
//! cost before it is authenticated, which is never.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection};

use crate::usage::processor_time;
use crate::world::{self, World};

/// Handshakes whose cost is measured.
const HANDSHAKES: usize = 6;

/// A CA with the subject of the one in `ca_file`.
fn authority(extensions: u64) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "the CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let extension = |arc| CustomExtension::from_oid_content(&[1, 2, 3, arc], vec![5, 0]);
    params.custom_extensions = (0..extensions).map(extension).collect();
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Starts a server with this chain. Returns its port and the count of its connections that have
/// ended.
fn serve(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> (u16, Arc<AtomicUsize>) {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let ended = Arc::new(AtomicUsize::new(0));
    let count = ended.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            shake(stream.unwrap(), ServerConnection::new(config.clone()).unwrap());
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, ended)
}

fn shake(mut stream: TcpStream, mut server: ServerConnection) {
    if server.complete_io(&mut stream).is_ok() {
        let mut tls = rustls::Stream::new(&mut server, &mut stream);
        let _ = tls.read(&mut [0; 64]);
        let _ = tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    }
}

#[test]
fn unsigned_chain_costs_little_processor_time() {
    let trusted = authority(0);
    for (certificates, extensions, why) in [
        (5, 1000, "unknown issuer"),
        (6, 700, "unknown issuer"),
        (7, 600, "no more than 6"),
        (100, 20, "no more than 6"),
    ] {
        let world = World::new();
        let authorities: Vec<_> = (1..certificates).map(|_| authority(extensions)).collect();
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.subject_alt_names = vec![rcgen::SanType::IpAddress("127.0.0.1".parse().unwrap())];
        let own = params.signed_by(&key, &authorities[0]).unwrap();
        let mut chain = vec![own.der().clone()];
        chain.extend(authorities.iter().map(|authority| authority.der().clone()));
        let (port, ended) = serve(chain, &key);

        let mut world = world;
        std::fs::write(world.device.path("ca.pem"), trusted.pem()).unwrap();
        let config = world::config(&world.mis, &world.tpm, "")
            .replace(
                world.mis.discovery_url().as_str(),
                &format!("https://127.0.0.1:{port}/.well-known/margo"),
            )
            .replace(world.mis.ca_file().to_str().unwrap(), world.device.path("ca.pem").to_str().unwrap());
        world.device.configure(&config);
        world.device.start();
        world.device.wait_for_error(why);
        let (before, seen) = (processor_time(&world.device), ended.load(Ordering::SeqCst));
        world.device.wait_until("some handshakes", |_| ended.load(Ordering::SeqCst) >= seen + HANDSHAKES);
        let cost = (processor_time(&world.device) - before) / u32::try_from(HANDSHAKES).unwrap();
        // Of an agent that is not even optimized. Half a second and more, were each tried with
        // each.
        assert!(cost < Duration::from_millis(150), "{certificates} certificates: {cost:?} a handshake");
    }
}
