//! Good answers, changed without a plan.

use super::*;

#[test]
fn a_chain_with_any_one_bit_turned_is_never_accepted() {
    let answer = with_intermediate();
    let (good, bundle) = (answer.certificates(), bundle_of(&[self_signed(&answer.issuers[1])]));
    let domain = domain();
    let expected = Expectation { trust_domain: &domain, spiffe_id: None, spki_der: &DEVICE.spki };
    for (which, certificate) in good.iter().enumerate() {
        for bit in 0..certificate.len() * 8 {
            let mut chain = good.clone();
            chain[which][bit / 8] ^= 1 << (bit % 8);
            let pems: Vec<_> =
                chain.into_iter().map(|der| certificate_pem(&CertificateDer::from(der))).collect();
            let judged = Chain::from_pem(&pems).and_then(|c| judge(&c, &expected, &bundle, at(NOW)));
            assert!(judged.is_err(), "bit {bit} of certificate {which}: {judged:?}");
        }
    }
}
