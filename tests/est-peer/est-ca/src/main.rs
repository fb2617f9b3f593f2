//! The EST server of the crate `est-ca` on a loopback port, without TLS: nginx is in front of it.
//!
//!     est-ca-server CA-FILE USER SECRET
//!
//! It makes a CA, writes the CA's certificate to the file, and prints `listening on http://ADDRESS:PORT`. The
//! common name of a verified client certificate, which renewal goes by, comes in the header `X-Client-Dn`.

use std::net::TcpListener;
use std::sync::Arc;

use axum::http::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use est_ca::auth::{AuthBackend, Principal};
use est_ca::ca::serial::InMemorySerialStore;
use est_ca::ca::{CertProfile, Issuer};
use est_ca::est::server::EstServer;

struct OneUser {
    user: String,
    secret: String,
}

impl AuthBackend for OneUser {
    fn verify_bootstrap(&self, user: &str, secret: &str) -> Result<Principal, String> {
        if (user, secret) == (self.user.as_str(), self.secret.as_str()) {
            Ok(Principal::new(user))
        } else {
            Err("unknown user or wrong secret".into())
        }
    }
}

/// As its documentation has the embedder do it.
async fn insert_principal<B>(mut request: Request<B>, next: Next<B>) -> Response {
    let name = request.headers().get("x-client-dn").and_then(|name| name.to_str().ok());
    if let Some(common_name) = name.and_then(|name| name.strip_prefix("CN=")).map(str::to_owned) {
        request.extensions_mut().insert(Principal::new(common_name));
    }
    next.run(request).await
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(user), Some(secret)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: est-ca-server CA-FILE USER SECRET".into());
    };
    // For servers as well, as an SVID has to be: what remains to be missed is the SPIFFE ID.
    let profile = CertProfile { server_auth: true, ..CertProfile::client_auth_for_days(1) };
    let issuer = Issuer::generate_self_signed("est-ca", profile, Arc::new(InMemorySerialStore::new()))?;
    std::fs::write(file, issuer.ca_cert_der())?;
    let router = EstServer::new(issuer, Arc::new(OneUser { user, secret }))
        .router()
        .layer(middleware::from_fn(insert_principal));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    println!("listening on http://{}", listener.local_addr()?);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        axum::Server::from_tcp(listener)?.serve(router.into_make_service()).await?;
        Ok(())
    })
}
