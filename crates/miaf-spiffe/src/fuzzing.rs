//! Fuzz targets: trust bundles and SVIDs.

use std::time::Duration;

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::svid::{self, Algorithms, Chain, Expectation, SvidError, X509Svid, certificate_pem};
use super::{Bundle, BundleWarning, MaybeNamedBundle, NameKind, TrustDomain};
use crate::testing::{check_error, parts};
use crate::time::Timestamp;

/// In the validity of the certificates in the corpora: 2026-07-01.
const NOW: i64 = 1_782_864_000;

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("factory.example").expect("a valid name")
}

/// A served trust bundle. One that is accepted reads the same from what the agent publishes of it.
pub fn bundle(data: &[u8]) -> bool {
    if let Ok(bundle) = MaybeNamedBundle::from_served(data, None) {
        let name = bundle.trust_domain().cloned().unwrap_or_else(trust_domain);
        let named = Bundle::from_served(data, &name).expect("what is accepted without a name");
        assert_eq!(*bundle.with_name(&name), named);
    }
    match Bundle::from_served(data, &trust_domain()) {
        Ok(bundle) => {
            let published = serde_json::to_vec(&bundle.to_document()).expect("a document");
            // What was withdrawn by a Bundle Map cannot be served as a plain bundle.
            let reread = if bundle.anchors().is_empty() { Bundle::from_stored } else { Bundle::from_served };
            let again = reread(&published, &trust_domain()).expect("what is published");
            assert_eq!(again.anchors(), bundle.anchors());
            assert_eq!(again.to_document(), bundle.to_document());
            assert!(!again.warnings().iter().any(BundleWarning::is_loss));
            let further = bundle.document(Duration::from_secs(300), bundle.anchors());
            let published = serde_json::to_vec(&further).expect("a document");
            let again = Bundle::from_stored(&published, &trust_domain()).expect("what is published");
            assert_eq!(again.anchors(), bundle.anchors());
            assert!(again.refresh_hint().is_some() && again.sequence() == bundle.sequence());
            for warning in bundle.warnings() {
                check_error(warning);
            }
            true
        }
        Err(e) => {
            let _ = Bundle::from_stored(data, &trust_domain());
            check_error(e)
        }
    }
}

/// An issued chain: certificates as [`parts`], the first for the trust bundle, the others leaf
/// first. A chain that is accepted is the same after it was stored.
pub fn svid(data: &[u8]) -> bool {
    let parts = parts(data);
    let Some((anchor, chain)) = parts.split_first() else { return false };
    let anchor = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, anchor);
    let served = format!(r#"{{"keys":[{{"kty":"EC","use":"x509-svid","x5c":["{anchor}"]}}]}}"#);
    let bundle = match Bundle::from_served(served.as_bytes(), &trust_domain()) {
        Ok(bundle) => bundle,
        Err(e) => return check_error(e),
    };
    let pems: Vec<String> = chain.iter().map(|der| certificate_pem(&CertificateDer::from(*der))).collect();
    let chain = match Chain::from_pem(&pems) {
        Ok(chain) => chain,
        Err(e) => return check_error(e),
    };
    let leaf = X509Certificate::from_der(chain.leaf()).ok();
    let key = leaf.as_ref().map(|(_, leaf)| leaf.public_key().raw).unwrap_or_default();
    let domain = trust_domain();
    let (name, algorithms) = (NameKind::Device, Algorithms::MiafV0);
    let of_v0 =
        Expectation { trust_domain: &domain, name, algorithms, wfm: None, spiffe_id: None, spki_der: key };
    let released =
        Expectation { name: NameKind::WfmClient, algorithms: Algorithms::Released, ..of_v0.clone() };
    let now = Timestamp::from_millis(NOW * 1000);
    let validated = match svid::validate(&chain, &of_v0, &bundle, now) {
        Err(SvidError::OtherKindOfName { .. } | SvidError::Algorithm(_)) => {
            svid::validate(&chain, &released, &bundle, now)
        }
        validated => validated,
    };
    match validated {
        Ok(svid) => {
            assert_eq!(svid.spiffe_id().trust_domain(), &domain);
            assert!(svid.not_before() < svid.not_after());
            assert!(svid::is_trusted(&svid, &bundle, now));
            assert!(chain.certificates().len() > 1 || svid.is_signed_by_anchor(&bundle));
            let stored = Chain::from_pem(&svid.chain().to_pems()).expect("what was written");
            let again = X509Svid::from_stored(stored).expect("what was accepted");
            assert_eq!((again.spiffe_id(), again.not_after()), (svid.spiffe_id(), svid.not_after()));
            true
        }
        Err(e) => check_error(e),
    }
}
