//! Bundles changed without a plan, and sequences of any kind.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// Made once: the properties read it many times.
static ANCHOR: std::sync::LazyLock<String> = std::sync::LazyLock::new(anchor);

fn without_warnings(bundle: &Bundle) -> Bundle {
    let content = BundleContent { warnings: Vec::new(), ..bundle.content.clone() };
    Bundle { content, ..bundle.clone() }
}

proptest! {
    #![proptest_config(crate::testing::cases(500))]

    #[test]
    fn bundle_of_any_bytes_does_not_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Bundle::from_served(&body, &domain());
    }

    /// Whatever a changed bundle is read as, it keeps to the limits and is handed out as what it
    /// was read as.
    #[test]
    fn changed_bundle_is_refused_or_read_back_as_itself(
        in_map in any::<bool>(),
        changes in prop::collection::vec((any::<Index>(), any::<Option<u8>>()), 0..4),
    ) {
        let entry = json!({ "keys": [jwk(json!([ANCHOR.as_str()]))], "spiffe_sequence": 7, "spiffe_refresh_hint": 60 });
        let mut body = if in_map { map(entry) } else { entry }.to_string().into_bytes();
        for (at, byte) in changes {
            let at = at.index(body.len());
            match byte {
                Some(byte) => body[at] = byte,
                None => drop(body.remove(at)),
            }
        }
        // The name takes no part in what a plain bundle is read as.
        if !in_map && let Ok(unnamed) = MaybeNamedBundle::from_served(&body, None)
            && unnamed.trust_domain().is_none()
        {
            prop_assert_eq!(Bundle::from_served(&body, &domain()), Ok(Bundle::clone(&unnamed.with_name(&domain()))));
        }
        if let Ok(bundle) = Bundle::from_served(&body, &domain()) {
            prop_assert!(bundle.anchors().len() <= MAX_ANCHORS);
            let again = Bundle::from_stored(handed_out(&bundle).to_string().as_bytes(), &domain()).unwrap();
            prop_assert_eq!(again.warnings(), []);
            prop_assert_eq!(again, without_warnings(&bundle));
            prop_assert!(in_map || !bundle.anchors().is_empty());
            let document = bundle.document(Duration::ZERO, &[]);
            let published = serde_json::to_vec(&document).unwrap();
            let published = Bundle::from_stored(&published, &domain()).unwrap();
            prop_assert_eq!(published.anchors(), bundle.anchors());
            prop_assert!(published.refresh_hint() == bundle.refresh_hint().or(Some(Duration::from_secs(1))));
            let pem = bundle.to_pem();
            let pem: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
            prop_assert_eq!(pem.unwrap(), bundle.anchors());
        }
    }

    #[test]
    fn lower_sequence_is_accepted_only_after_a_day(
        stored in any::<u64>(),
        served in any::<u64>(),
        begun in any::<i64>(),
        later in 0..3 * 24 * 3600_u64,
    ) {
        let first = check_sequence(Some(stored), Some(served), None, Timestamp::from_millis(begun));
        let SequenceCheck::Regressed { since } = first else {
            prop_assert!(served >= stored);
            return Ok(());
        };
        let now = since.after(Duration::from_secs(later));
        let again = check_sequence(Some(stored), Some(served), Some(since), now);
        prop_assert_eq!(again == SequenceCheck::Accepted, since.until(now) >= Duration::from_secs(24 * 3600));
    }
}
