//! What the WFM client that Margo has released demands of a file that this agent only passes on:
//! its rules are stricter than the agent's own, and it says no more than that it does not start.

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use miaf_spiffe::pem;

/// The fault for which the released WFM client refuses the CA file of the MIS's HTTPS endpoints
/// (`mis.trust.ca_file`, its `https-ca.crt`). It considers the first certificate alone, which must be
/// a CA with `keyCertSign` and `cRLSign`. `None`: it takes the file.
pub(crate) fn ca_file_fault_for_released_client(pem: &[u8]) -> Option<&'static str> {
    let certificates = pem::certificates(pem).map(|read| read.certificates).unwrap_or_default();
    let Some((_, first)) = certificates.first() else { return Some("it is not PEM with certificates") };
    let Ok((_, first)) = X509Certificate::from_der(first) else {
        return Some("its first certificate cannot be read");
    };
    let is_ca = first.basic_constraints().ok().flatten().is_some_and(|constraints| constraints.value.ca);
    let usage = first.key_usage().ok().flatten().map(|usage| usage.value);
    let may = |permits: fn(&x509_parser::extensions::KeyUsage) -> bool| usage.is_some_and(permits);
    match (is_ca, may(|usage| usage.key_cert_sign()), may(|usage| usage.crl_sign())) {
        (false, ..) => Some("its first certificate is not that of a CA (CA:TRUE)"),
        (true, false, false) => Some("the key usage of its first certificate lacks keyCertSign and cRLSign"),
        (true, false, true) => Some("the key usage of its first certificate lacks keyCertSign"),
        (true, true, false) => Some("the key usage of its first certificate lacks cRLSign"),
        (true, true, true) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};

    fn certificate(is_ca: bool, usages: &[KeyUsagePurpose]) -> String {
        let mut params = CertificateParams::default();
        params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
        params.key_usages = usages.to_vec();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn ca_file_for_released_clients_begins_with_a_full_ca() {
        let fault = |pem: &str| ca_file_fault_for_released_client(pem.as_bytes());
        let good = certificate(true, &[KeyCertSign, CrlSign]);
        assert_eq!(fault(&good), None);
        assert_eq!(fault(&certificate(true, &[DigitalSignature, KeyCertSign, CrlSign])), None);
        for (pem, expected) in [
            (certificate(true, &[KeyCertSign]), "certificate lacks cRLSign"),
            (certificate(true, &[CrlSign]), "certificate lacks keyCertSign"),
            (certificate(true, &[DigitalSignature]), "lacks keyCertSign and cRLSign"),
            (certificate(true, &[]), "lacks keyCertSign and cRLSign"),
            (certificate(false, &[KeyCertSign, CrlSign]), "not that of a CA"),
            (certificate(false, &[DigitalSignature]), "not that of a CA"),
            // It does not look for a better one.
            (certificate(true, &[KeyCertSign]) + &good, "lacks cRLSign"),
            (String::new(), "not PEM with certificates"),
            ("-----BEGIN CERTIFICATE-----\nMIIB\n".to_owned(), "not PEM with certificates"),
            (good.replace("MII", "AAA"), "cannot be read"),
        ] {
            assert!(
                fault(&pem).is_some_and(|fault| fault.contains(expected)),
                "{expected}: {:?}",
                fault(&pem)
            );
        }
        assert_eq!(fault(&(good + &certificate(true, &[KeyCertSign]))), None);
    }
}
