//! The gate before requests that mean something else without the client certificate (X29): where the
//! server did not take it in the handshake, the connection fails before anything is sent on it.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use super::server_verifier::{ClientAuthRequest, HandshakeObservation};

/// Layer of the HTTP client's connector: it lets those connections through on which the certificate
/// was sent. The observation is of one call, as the client is.
#[derive(Clone)]
pub(super) struct CertificateGate(pub(super) Arc<HandshakeObservation>);

impl<S> Layer<S> for CertificateGate {
    type Service = GatedConnector<S>;

    fn layer(&self, connector: S) -> GatedConnector<S> {
        GatedConnector { connector, observation: self.0.clone() }
    }
}

/// A connector behind the gate.
#[derive(Clone)]
pub(super) struct GatedConnector<S> {
    connector: S,
    observation: Arc<HandshakeObservation>,
}

type BoxError = Box<dyn Error + Send + Sync>;

impl<S, Request> Service<Request> for GatedConnector<S>
where
    S: Service<Request, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // Should a call ever need a second connection, the first says nothing of it.
        self.observation.requested(ClientAuthRequest::None);
        let (connected, observation) = (self.connector.call(request), self.observation.clone());
        Box::pin(async move {
            let connection = connected.await?; // the handshake is done
            match observation.request() {
                ClientAuthRequest::Sent(_) => Ok(connection),
                ClientAuthRequest::OtherKeys => Err(CertificateNotSent(
                    "it accepts no signatures of the kind that the certificate's key makes",
                )
                .into()),
                ClientAuthRequest::None | ClientAuthRequest::NoCertificate => {
                    Err(CertificateNotSent("it did not request one").into())
                }
            }
        })
    }
}

/// The server did not take the client certificate.
#[derive(Debug)]
pub(super) struct CertificateNotSent(pub(super) &'static str);

impl fmt::Display for CertificateNotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for CertificateNotSent {}
