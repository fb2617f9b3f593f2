//! Chains from bags: shuffled, with decoys, in the middle of a root's rollover, with something missing.

use proptest::prelude::*;

use super::*;
use crate::chain::MAX_CHAIN;

const CLIENT_ID: &str = "spiffe://factory.example/margo/wfm/wfm-1/client/line-7";

/// A leaf by this issuer.
fn leaf(issuer: &Template) -> CertificateDer<'static> {
    let mut leaf = direct().leaf;
    leaf.set(SUBJECT_ALT_NAME, true, names(&[uri(CLIENT_ID)]));
    leaf.certify(issuer).into()
}

fn chain(leaf: &CertificateDer<'_>, bag: &[Vec<u8>], bundle: &Bundle) -> Result<Vec<Vec<u8>>, SvidError> {
    let candidates = CandidateIssuers::from_bag(bag.iter().map(Vec::as_slice));
    let chain = candidates.chain(leaf, bundle, Algorithms::Released, at(NOW))?;
    Ok(chain.certificates().iter().map(|der| der.to_vec()).collect())
}

/// The certificates between the leaf and the anchor.
fn path(leaf: &CertificateDer<'_>, bag: &[Vec<u8>], bundle: &Bundle) -> Result<Vec<Vec<u8>>, SvidError> {
    let chain = chain(leaf, bag, bundle)?;
    assert_eq!(chain[0], leaf.as_ref());
    Ok(chain[1..].to_vec())
}

proptest! {
    #![proptest_config(crate::testing::cases(64))]

    #[test]
    fn chain_does_not_depend_on_the_order_of_the_bag(
        (order, decoys) in (Just((0..12_usize).collect::<Vec<_>>()).prop_shuffle(), 0..1024_u32)
    ) {
        let root = authority("Root", &ROOT);
        let (upper, lower) = (authority("Upper", &INTERMEDIATE), authority("Lower", &ED25519));
        let (other_root, mut expired) = (authority("Root", &OTHER), upper.clone());
        (expired.not_before, expired.not_after) = (NOW - 30 * DAY, NOW - DAY);
        let mut shorter = lower.clone();
        shorter.not_after = NOW + 2 * DAY;
        let other_upper = authority("Upper", &OTHER);
        let leaf = leaf(&lower);
        let (upper_der, lower_der) = (upper.certify(&root), lower.certify(&upper));
        let all = [
            upper_der.clone(),
            lower_der.clone(),
            self_signed(&root),
            self_signed(&other_root),
            expired.certify(&root),
            shorter.certify(&upper),
            other_upper.certify(&other_root),
            other_upper.certify(&root),
            authority("Lower", &OTHER).certify(&other_upper),
            leaf.to_vec(),
            b"no certificate".to_vec(),
            upper_der.clone(),
        ];
        let bag: Vec<_> = order
            .into_iter()
            .filter(|index| *index < 2 || decoys & (1 << (index - 2)) != 0)
            .map(|index| all[index].clone())
            .collect();
        let bundle = bundle_of(&[self_signed(&root)]);
        let found = chain(&leaf, &bag, &bundle).unwrap();
        prop_assert_eq!(&found[1..], [lower_der, upper_der]);
        // It is the chain that passes validation.
        let ders: Vec<_> = found.into_iter().map(CertificateDer::from).collect();
        let (domain, chain) = (domain(), Chain::from_der(&ders).unwrap());
        let expected = expectation(&domain, RELEASED, None, &DEVICE.spki);
        validate(&chain, &expected, &bundle, at(NOW)).unwrap();
    }
}

#[test]
fn rollover_certificates_of_a_root_carry_the_path() {
    let (old, new) = (authority("Root", &ROOT), authority("Root", &OTHER));
    let (new_with_old, old_with_new) = (new.certify(&old), old.certify(&new));
    let bag = [self_signed(&new), old_with_new.clone(), new_with_old.clone(), self_signed(&old)];
    for (issuer, anchor, want) in [
        (&new, &old, vec![new_with_old]),
        (&old, &new, vec![old_with_new]),
        (&new, &new, vec![]),
        (&old, &old, vec![]),
    ] {
        let found = path(&leaf(issuer), &bag, &bundle_of(&[self_signed(anchor)]));
        assert_eq!(found.unwrap(), want);
    }
}

#[test]
fn chain_ends_in_the_bundle_and_nowhere_else() {
    let (root, issuer) = (authority("Root", &ROOT), authority("Issuer", &INTERMEDIATE));
    let stranger = authority("Stranger", &OTHER);
    let bundle = bundle_of(&[self_signed(&root)]);
    let by_stranger = issuer.certify(&stranger);
    for (bag, why) in [
        (vec![], "nothing"),
        (vec![self_signed(&issuer)], "an issuer that signed itself"),
        (vec![by_stranger.clone(), self_signed(&stranger)], "a complete chain to another root"),
        (vec![issuer.certify(&authority("Root", &OTHER))], "an issuer by another key of the root's name"),
    ] {
        let refused = path(&leaf(&issuer), &bag, &bundle).unwrap_err();
        assert_eq!(refused, SvidError::UnknownIssuer, "{why}");
        assert!(refused.depends_on_bundle());
    }
    let complete = [by_stranger, issuer.certify(&root)];
    assert_eq!(path(&leaf(&issuer), &complete, &bundle).unwrap(), complete[1..]);
    assert!(path(&leaf(&root), &[], &bundle).unwrap().is_empty());
}

#[test]
fn self_signed_is_what_its_own_key_signed() {
    let (root, issuer) = (authority("Root", &ROOT), authority("Issuer", &INTERMEDIATE));
    let renamed = authority("Another name", &ROOT);
    let candidates = |bag: &[Vec<u8>]| CandidateIssuers::from_bag(bag.iter().map(Vec::as_slice));
    let mut first_version = root.clone();
    (first_version.version, first_version.extensions) = (None, Vec::new());
    for (bag, count) in [
        (vec![self_signed(&root)], 0),
        (vec![renamed.certify(&root)], 0), // another name, and still its own signature
        (vec![authority("Root", &OTHER).certify(&root)], 1), // the same name, and another key
        (vec![issuer.certify(&root), issuer.certify(&root)], 2), // ECDSA: another signature each time
        (vec![vec![0x30, 0], vec![], issuer.certify(&root)[1..].to_vec()], 0),
        (vec![self_signed(&first_version)], 0),
    ] {
        assert_eq!(candidates(&bag).certificates().len(), count);
    }
    let one = issuer.certify(&root);
    assert_eq!(candidates(&[one.clone(), one.clone(), one]).certificates().len(), 1);
}

#[test]
fn bag_of_one_name_and_many_keys_is_bounded() {
    let root = authority("Root", &ROOT);
    let bag: Vec<_> = (0..400)
        .map(|serial: u16| {
            let mut twin = authority("Issuer", &OTHER);
            twin.serial = [&[1][..], &serial.to_be_bytes()].concat();
            twin.certify(&twin)
        })
        .collect();
    // They are self-issued, and signed by another key of their name.
    let crowd: Vec<_> = (0..400)
        .map(|serial: u16| {
            let mut twin = authority("Issuer", &OTHER);
            twin.serial = [&[2][..], &serial.to_be_bytes()].concat();
            twin.certify(&authority("Issuer", &ED25519))
        })
        .collect();
    let bundle = bundle_of(&[self_signed(&root)]);
    let leaf = leaf(&authority("Issuer", &INTERMEDIATE));
    for (bag, count) in [(&bag, 0), (&crowd, CandidateIssuers::MAX)] {
        let candidates = CandidateIssuers::from_bag(bag.iter().map(Vec::as_slice));
        assert_eq!(candidates.certificates().len(), count);
        assert!(candidates.chain(&leaf, &bundle, Algorithms::Released, at(NOW)).is_err());
    }
    // What is self-signed takes no place.
    let issuer = authority("Issuer", &INTERMEDIATE).certify(&root);
    let late = [bag, vec![issuer.clone()]].concat();
    assert_eq!(path(&leaf, &late, &bundle).unwrap(), [issuer]);
}

#[test]
fn chain_of_the_near_future_is_assembled() {
    let (root, mut issuer) = (authority("Root", &ROOT), authority("Issuer", &INTERMEDIATE));
    let bundle = bundle_of(&[self_signed(&root)]);
    for (ahead, is_found) in [(5 * MINUTE, true), (20 * MINUTE, false)] {
        issuer.not_before = NOW + ahead;
        let found = path(&leaf(&issuer), &[issuer.certify(&root)], &bundle);
        assert_eq!(found.is_ok(), is_found, "{found:?}");
    }
    issuer.not_before = NOW - 30 * DAY;
    issuer.not_after = NOW - DAY;
    let expired = path(&leaf(&issuer), &[issuer.certify(&root)], &bundle).unwrap_err();
    assert!(matches!(expired, SvidError::IssuerExpired { .. }), "{expired}");
    let candidates = CandidateIssuers::default();
    let late = candidates.chain(&leaf(&root), &bundle, Algorithms::Released, at(NOW + 2 * DAY)).unwrap_err();
    assert!(matches!(late, SvidError::Expired { .. }), "{late}");
    let none = candidates.chain(&CertificateDer::from_slice(&[5, 0]), &bundle, Algorithms::Released, at(NOW));
    assert_eq!(none, Err(SvidError::Malformed { index: 0 }));
}

#[test]
fn chain_that_is_assembled_has_no_more_certificates_than_any() {
    let root = authority("Root", &ROOT);
    let keys = [&*INTERMEDIATE, &OTHER, &ED25519, &INTERMEDIATE, &OTHER, &ED25519];
    let names = ["1", "2", "3", "4", "5", "6"];
    let issuers: Vec<_> = names.into_iter().zip(keys).map(|(name, key)| authority(name, key)).collect();
    let above = std::iter::once(&root).chain(&issuers);
    let bag: Vec<_> = issuers.iter().zip(above).map(|(issuer, above)| issuer.certify(above)).collect();
    let bundle = bundle_of(&[self_signed(&root)]);
    let longest = path(&leaf(&issuers[MAX_CHAIN - 2]), &bag, &bundle).unwrap();
    assert_eq!(longest.len(), MAX_CHAIN - 1);
    assert_eq!(path(&leaf(&issuers[MAX_CHAIN - 1]), &bag, &bundle), Err(SvidError::LongChain(MAX_CHAIN + 1)));
}

fn lead(bag: &[Vec<u8>], anchors: &[Vec<u8>]) -> Result<(), SvidError> {
    may_lead_to(bag.iter().map(Vec::as_slice), &bundle_of(anchors), Algorithms::Released, at(NOW))
}

fn leads(bag: &[Vec<u8>], anchors: &[Vec<u8>]) -> bool {
    lead(bag, anchors).is_ok()
}

proptest! {
    #![proptest_config(crate::testing::cases(64))]

    /// Whatever has a chain is not held back, in any order and among strangers; and where nothing but
    /// strangers is left, it is.
    #[test]
    fn bag_with_a_chain_may_lead_to_the_bundle(
        (order, parts) in (Just((0..10_usize).collect::<Vec<_>>()).prop_shuffle(), 0..1024_u32)
    ) {
        let root = authority("Root", &ROOT);
        let (upper, lower) = (authority("Upper", &INTERMEDIATE), authority("Lower", &ED25519));
        let (other_root, mut expired) = (authority("Root", &OTHER), upper.clone());
        (expired.not_before, expired.not_after) = (NOW - 30 * DAY, NOW - DAY);
        let all = [
            upper.certify(&root),
            self_signed(&root),
            lower.certify(&upper),
            // From here on, none leads anywhere.
            self_signed(&other_root),
            expired.certify(&root),
            authority("Upper", &OTHER).certify(&other_root),
            authority("Lower", &OTHER).certify(&authority("Upper", &OTHER)),
            leaf(&root).to_vec(),
            b"no certificate".to_vec(),
            self_signed(&authority("Stranger", &OTHER)),
        ];
        let chosen: Vec<_> = order.into_iter().filter(|index| parts & (1 << index) != 0).collect();
        let bag: Vec<_> = chosen.iter().map(|index| all[*index].clone()).collect();
        let anchors = [self_signed(&root)];
        let has_chain = path(&leaf(&lower), &bag, &bundle_of(&anchors)).is_ok();
        let may_lead = leads(&bag, &[all[1].clone()]);
        prop_assert!(may_lead || !has_chain);
        prop_assert_eq!(may_lead, bag.is_empty() || chosen.iter().any(|index| *index < 2));
    }
}

#[test]
fn bag_may_lead_to_the_bundle_by_one_link() {
    let (root, issuer) = (authority("Root", &ROOT), authority("Issuer", &INTERMEDIATE));
    let (next, stranger) = (authority("Root", &OTHER), authority("Stranger", &OTHER));
    let anchor = self_signed(&root);
    let with = |change: &dyn Fn(&mut Template), of: &Template| {
        let mut changed = of.clone();
        change(&mut changed);
        changed
    };
    let validity = |from, to| move |one: &mut Template| (one.not_before, one.not_after) = (from, to);
    let ended = validity(NOW - 30 * DAY, NOW - DAY);
    let old_anchor = self_signed(&with(&ended, &root));
    let first_version = |one: &mut Template| (one.version, one.extensions) = (None, Vec::new());
    let weak = authority("Weak root", &RSA_2048);
    let identified = |id: u8| move |one: &mut Template| one.set(SUBJECT_KEY_ID, false, tlv(4, &[&[id]]));
    // A CA below the root, as one whose signature cannot be verified here.
    let below = |id: u8| {
        let named = |one: &mut Template| one.set(AUTHORITY_KEY_ID, false, sequence(&[&tlv(0x80, &[&[id]])]));
        with(&named, &issuer).certify(&next)
    };
    for (bag, anchors, may_lead, why) in [
        (vec![], vec![anchor.clone()], true, "nothing says otherwise"),
        (vec![anchor.clone()], vec![anchor.clone()], true, "the root alone"),
        (vec![old_anchor.clone()], vec![old_anchor.clone()], true, "an anchor that has ended is one"),
        (
            vec![self_signed(&with(&|one| one.serial = vec![9], &root))],
            vec![anchor.clone()],
            true,
            "reissued",
        ),
        // A leaf that the root itself issues has a chain, whatever certificate of it is served.
        (vec![old_anchor], vec![anchor.clone()], true, "an expired twin of the root"),
        (
            vec![with(&ended, &root).certify(&stranger)],
            vec![anchor.clone()],
            true,
            "an expired cross-certificate",
        ),
        (
            vec![self_signed(&with(&first_version, &root))],
            vec![anchor.clone()],
            true,
            "an old twin of the root",
        ),
        (vec![issuer.certify(&root)], vec![anchor.clone()], true, "an intermediate alone"),
        (vec![with(&ended, &issuer).certify(&root)], vec![anchor.clone()], false, "an expired one"),
        (
            vec![with(&validity(NOW + 5 * MINUTE, NOW + DAY), &issuer).certify(&root)],
            vec![anchor.clone()],
            true,
            "one of the near future",
        ),
        (
            vec![with(&validity(NOW + DAY, NOW + 9 * DAY), &issuer).certify(&root)],
            vec![anchor.clone()],
            false,
            "one of tomorrow",
        ),
        (vec![root.certify(&next)], vec![self_signed(&next)], true, "the old root, by the next one"),
        (vec![next.certify(&root)], vec![anchor.clone()], true, "the next root, by the old one"),
        (vec![anchor.clone()], vec![issuer.certify(&root)], true, "an anchor below the root"),
        (
            vec![issuer.certify(&root), anchor.clone()],
            vec![issuer.certify(&root)],
            true,
            "the same, with both",
        ),
        // The path ends below it: what it is does not matter.
        (vec![self_signed(&with(&ended, &root))], vec![issuer.certify(&root)], true, "below an expired root"),
        (vec![self_signed(&weak)], vec![issuer.certify(&weak)], true, "below a root with a short RSA key"),
        (
            vec![self_signed(&with(&first_version, &root))],
            vec![issuer.certify(&root)],
            true,
            "below a root of version 1",
        ),
        (vec![self_signed(&with(&identified(7), &root))], vec![below(7)], true, "by an unknown algorithm"),
        (vec![self_signed(&with(&identified(8), &root))], vec![below(7)], false, "the same, of another key"),
        (vec![issuer.certify(&root)], vec![self_signed(&with(&first_version, &root))], true, "an old root"),
        (vec![self_signed(&next)], vec![anchor.clone()], false, "a decoy of the root's name"),
        (vec![issuer.certify(&next)], vec![anchor.clone()], false, "issued by that decoy"),
        (vec![self_signed(&stranger), vec![0x30, 0]], vec![anchor.clone()], false, "strangers"),
        (vec![leaf(&root).to_vec()], vec![anchor.clone()], false, "no CA"),
        (vec![leaf(&root).to_vec()], vec![leaf(&root).to_vec(), anchor.clone()], false, "no CA in either"),
        (vec![b"no certificate".to_vec()], vec![anchor.clone()], false, "nothing that can be read"),
    ] {
        assert_eq!(leads(&bag, &anchors), may_lead, "{why}");
    }
    assert!(leads(&[vec![5, 0]], &[]), "no anchors");
}

#[test]
fn ca_below_an_anchor_that_may_not_issue_says_why() {
    let root = authority("Root", &ROOT);
    let valid = |from, to, key| {
        let mut issuer = authority("Issuer", key);
        (issuer.not_before, issuer.not_after) = (from, to);
        issuer
    };
    let anchors = [self_signed(&root)];
    let expired = valid(NOW - 30 * DAY, NOW - DAY, &INTERMEDIATE);
    let not_after = at(NOW - DAY);
    assert_eq!(
        lead(&[expired.certify(&root)], &anchors),
        Err(SvidError::IssuerExpired { not_after, now: at(NOW) })
    );
    let not_before = at(NOW + DAY);
    let early = valid(NOW + DAY, NOW + 9 * DAY, &INTERMEDIATE);
    assert_eq!(
        lead(&[early.certify(&root)], &anchors),
        Err(SvidError::FarFuture { not_before, now: at(NOW) })
    );
    let weak = valid(NOW - DAY, NOW + DAY, &RSA_2048);
    assert_eq!(lead(&[weak.certify(&root)], &anchors), Err(SvidError::WeakRsa(2048)));
    // One that only says that it is below the anchor is a stranger, and so is what is no CA.
    let by_other = expired.certify(&authority("Root", &OTHER));
    assert_eq!(lead(&[by_other, leaf(&root).to_vec()], &anchors), Err(SvidError::UnknownIssuer));
}

#[test]
fn anchor_in_the_bag_that_may_not_issue_says_why() {
    let (root, weak) = (authority("Root", &ROOT), authority("Weak root", &RSA_2048));
    let issuer = authority("Issuer", &INTERMEDIATE).certify(&weak);
    let (strong, bag) =
        (self_signed(&root), [issuer, self_signed(&weak), self_signed(&authority("Other", &OTHER))]);
    let anchors = [bag[1].clone(), strong.clone()];
    assert_eq!(lead(&bag, &anchors), Err(SvidError::WeakRsa(2048)));
    assert_eq!(lead(&bag, std::slice::from_ref(&strong)), Err(SvidError::UnknownIssuer));
    assert_eq!(lead(&[&bag[..], &[strong]].concat(), &anchors), Ok(()), "another one may");
    let no_ca = [leaf(&root).to_vec()];
    assert_eq!(lead(&no_ca, &no_ca), Err(SvidError::IssuerIsNoAuthority));
}

#[test]
fn search_in_a_bag_before_a_leaf_is_bounded() {
    let root = authority("Root", &ROOT);
    let of_its_name = authority("Root", &OTHER);
    let twins = |count: u16| -> Vec<_> {
        let twin = |serial: u16| {
            let mut twin = authority("Issuer", &INTERMEDIATE);
            twin.serial = [&[1][..], &serial.to_be_bytes()].concat();
            twin.certify(&of_its_name)
        };
        (0..count).map(twin).collect()
    };
    let anchors = [self_signed(&root)];
    assert!(!leads(&twins(256), &anchors));
    assert!(leads(&twins(257), &anchors), "undecided: nothing is held back for it");
    assert!(leads(&vec![vec![0x30, 0]; 513], &anchors), "the same");
}
