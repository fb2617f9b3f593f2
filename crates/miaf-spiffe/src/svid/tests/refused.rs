//! Responses that must be refused, each with its own reason.

use SvidError as R;

use super::*;

#[test]
fn leaf_with_another_name_is_refused() {
    const UPPERCASE: &str = "spiffe://factory.example/margo/device/123E4567-E89B-42D3-A456-426614174000";
    const FOREIGN: &str = "spiffe://other.example/margo/device/123e4567-e89b-42d3-a456-426614174000";
    const SUBDOMAIN: &str = "spiffe://a.factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";
    const DEEPER: &str = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000/x";
    const PROGRAM: &str = "spiffe://factory.example/margo/wfm/123e4567-e89b-42d3-a456-426614174000";
    const NO_DASHES: &str = "spiffe://factory.example/margo/device/123e4567e89b42d3a456426614174000";
    const LONG: &str = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-4266141740001";
    const NOT_HEX: &str = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-42661417400g";
    const NO_UUID: &str = "spiffe://factory.example/margo/device";
    const WFM_CLIENT: &str =
        "spiffe://factory.example/margo/wfm/w/client/123e4567-e89b-42d3-a456-426614174000";
    let not_a_device = |uri| R::OtherKindOfName { got: id(uri), want: NameKind::Device };
    let foreign = |uri| R::OtherTrustDomain { got: id(uri), want: domain() };
    each_is_refused(
        direct,
        vec![
            ("no SAN", |a| a.leaf.without(SUBJECT_ALT_NAME), R::UriCount(0)),
            ("a DNS name only", |a| san(a, &[dns("device.factory.example")]), R::UriCount(0)),
            ("an IP address only", |a| san(a, &[tlv(0x87, &[&[192, 0, 2, 1]])]), R::UriCount(0)),
            (
                "the SPIFFE ID in the subject only",
                |a| {
                    a.leaf.subject = name(DEVICE_ID);
                    a.leaf.without(SUBJECT_ALT_NAME);
                },
                R::UriCount(0),
            ),
            ("no name in the SAN", |a| san(a, &[]), R::UriCount(0)),
            ("two URIs", |a| san(a, &[uri(DEVICE_ID), uri(SIBLING_ID)]), R::UriCount(2)),
            ("the same URI twice", |a| san(a, &[uri(DEVICE_ID), uri(DEVICE_ID)]), R::UriCount(2)),
            (
                "a second URI whose bytes are no text",
                |a| san(a, &[uri(DEVICE_ID), uri(b"spiffe://factory.example/\xff")]),
                R::Extension,
            ),
            (
                "a DNS name whose bytes are no text",
                |a| san(a, &[uri(DEVICE_ID), tlv(0x82, &[b"\xff"])]),
                R::Extension,
            ),
            (
                "a name of a kind that there is not",
                |a| san(a, &[uri(DEVICE_ID), tlv(0x89, &[b"name"])]),
                R::Extension,
            ),
            (
                "no subject, and names that a verifier may overlook",
                |a| a.leaf.set(SUBJECT_ALT_NAME, false, names(&[uri(DEVICE_ID)])),
                R::NamesNotCritical,
            ),
            (
                "a second SAN behind the good one",
                |a| a.leaf.add(SUBJECT_ALT_NAME, false, names(&[uri(SIBLING_ID)])),
                R::Extension,
            ),
            (
                "bytes behind the names",
                |a| a.leaf.set(SUBJECT_ALT_NAME, true, [names(&[uri(DEVICE_ID)]), vec![5, 0]].concat()),
                R::Extension,
            ),
            ("a SAN that is no SAN", |a| a.leaf.set(SUBJECT_ALT_NAME, true, vec![5, 0]), R::Extension),
            // Found by a property: x509-parser takes it for a URI.
            (
                "a URI whose tag says that there are elements in it",
                |a| san(a, &[tlv(0xa6, &[DEVICE_ID.as_bytes()])]),
                R::Extension,
            ),
            (
                "a URI in an element within such a tag, as BER allows and OpenSSL reads",
                |a| san(a, &[tlv(0xa6, &[&tlv(IA5_STRING, &[DEVICE_ID.as_bytes()])])]),
                R::Extension,
            ),
            (
                "a URI, and a second one whose tag says that there are elements in it",
                |a| san(a, &[uri(DEVICE_ID), tlv(0xa6, &[SIBLING_ID.as_bytes()])]),
                R::Extension,
            ),
            (
                "a URI by the tag of another class",
                |a| san(a, &[tlv(0x46, &[DEVICE_ID.as_bytes()])]),
                R::Extension,
            ),
            (
                "a DNS name whose tag says that there are elements in it",
                |a| san(a, &[uri(DEVICE_ID), tlv(0xa2, &[b"plc.example"])]),
                R::Extension,
            ),
            (
                "a DNS name that is not ASCII",
                |a| san(a, &[uri(DEVICE_ID), dns("pl\u{e7}.example")]),
                R::Extension,
            ),
            (
                "an IP address of five bytes",
                |a| san(a, &[uri(DEVICE_ID), tlv(0x87, &[&[127, 0, 0, 0, 1]])]),
                R::Extension,
            ),
            (
                "an http URI",
                |a| san(a, &[uri("http://factory.example/margo")]),
                not_a_spiffe_id("http://factory.example/margo", SpiffeIdError::Scheme),
            ),
            (
                "a trust domain and no path",
                |a| san(a, &[uri("spiffe://factory.example")]),
                not_a_spiffe_id("spiffe://factory.example", SpiffeIdError::NoPath),
            ),
            (
                "a path and no trust domain",
                |a| san(a, &[uri("/margo/device/123e4567-e89b-42d3-a456-426614174000")]),
                not_a_spiffe_id("/margo/device/123e4567-e89b-42d3-a456-426614174000", SpiffeIdError::Scheme),
            ),
            (
                "a zero byte, where a reader in C would stop",
                |a| san(a, &[uri(format!("{DEVICE_ID}\0.example"))]),
                not_a_spiffe_id(&format!("{DEVICE_ID}\u{fffd}.example"), SpiffeIdError::PathCharacter),
            ),
            (
                "an uppercase scheme",
                |a| san(a, &[uri("SPIFFE://factory.example/margo/device/x")]),
                not_a_spiffe_id("SPIFFE://factory.example/margo/device/x", SpiffeIdError::Scheme),
            ),
            (
                "an uppercase domain",
                |a| san(a, &[uri("spiffe://Factory.example/margo")]),
                not_a_spiffe_id("spiffe://Factory.example/margo", SpiffeIdError::TrustDomain),
            ),
            (
                "a port",
                |a| san(a, &[uri("spiffe://factory.example:443/margo")]),
                not_a_spiffe_id("spiffe://factory.example:443/margo", SpiffeIdError::TrustDomain),
            ),
            (
                "a user",
                |a| san(a, &[uri("spiffe://user@factory.example/margo")]),
                not_a_spiffe_id("spiffe://user@factory.example/margo", SpiffeIdError::TrustDomain),
            ),
            (
                "a query",
                |a| san(a, &[uri("spiffe://factory.example/margo?x")]),
                not_a_spiffe_id("spiffe://factory.example/margo?x", SpiffeIdError::PathCharacter),
            ),
            (
                "a fragment",
                |a| san(a, &[uri("spiffe://factory.example/margo#x")]),
                not_a_spiffe_id("spiffe://factory.example/margo#x", SpiffeIdError::PathCharacter),
            ),
            (
                "a letter that is percent-encoded",
                |a| san(a, &[uri("spiffe://factory.example/%6dargo")]),
                not_a_spiffe_id("spiffe://factory.example/%6dargo", SpiffeIdError::PathCharacter),
            ),
            (
                "a slash at the end",
                |a| san(a, &[uri("spiffe://factory.example/margo/")]),
                not_a_spiffe_id("spiffe://factory.example/margo/", SpiffeIdError::EmptySegment),
            ),
            (
                "a way up",
                |a| san(a, &[uri("spiffe://factory.example/margo/../x")]),
                not_a_spiffe_id("spiffe://factory.example/margo/../x", SpiffeIdError::DotSegment),
            ),
            (
                "a name of 2,049 bytes",
                |a| san(a, &[uri(format!("{DEVICE_ID:a<2049}"))]),
                R::NotASpiffeId {
                    uri: Excerpt::of(format!("{DEVICE_ID:a<2049}"), 128).into(),
                    why: SpiffeIdError::TooLong,
                },
            ),
            ("another domain", |a| san(a, &[uri(FOREIGN)]), foreign(FOREIGN)),
            ("a domain below this one", |a| san(a, &[uri(SUBDOMAIN)]), foreign(SUBDOMAIN)),
            ("an uppercase UUID", |a| san(a, &[uri(UPPERCASE)]), not_a_device(UPPERCASE)),
            ("a UUID without dashes", |a| san(a, &[uri(NO_DASHES)]), not_a_device(NO_DASHES)),
            ("a UUID with a digit too many", |a| san(a, &[uri(LONG)]), not_a_device(LONG)),
            ("a UUID with a letter past f", |a| san(a, &[uri(NOT_HEX)]), not_a_device(NOT_HEX)),
            ("no UUID", |a| san(a, &[uri(NO_UUID)]), not_a_device(NO_UUID)),
            ("a WFM client", |a| san(a, &[uri(WFM_CLIENT)]), not_a_device(WFM_CLIENT)),
            ("a segment too many", |a| san(a, &[uri(DEEPER)]), not_a_device(DEEPER)),
            ("a path that is no device's", |a| san(a, &[uri(PROGRAM)]), not_a_device(PROGRAM)),
            (
                "a renewal for another device",
                |a| a.renewing = Some(SIBLING_ID),
                R::OtherIdentity { got: id(DEVICE_ID), want: id(SIBLING_ID) },
            ),
        ],
    );
}

#[test]
fn leaf_with_wrong_usages_is_refused() {
    fn usage(a: &mut Response, flags: u8) {
        a.leaf.set(KEY_USAGE, true, usages(flags));
    }
    fn purpose(a: &mut Response, all: &[&str]) {
        a.leaf.set(EXTENDED_KEY_USAGE, false, purposes(all));
    }
    each_is_refused(
        direct,
        vec![
            (
                "cA is true",
                |a| a.leaf.set(BASIC_CONSTRAINTS, true, basic_constraints(true, None)),
                R::CertificateAuthority,
            ),
            (
                "cA is true in a second basicConstraints",
                |a| a.leaf.add(BASIC_CONSTRAINTS, true, basic_constraints(true, None)),
                R::Extension,
            ),
            (
                "basicConstraints that cannot be read",
                |a| a.leaf.set(BASIC_CONSTRAINTS, true, sequence(&[&[5, 0]])),
                R::Path(PathError::BadDer),
            ),
            ("no keyUsage", |a| a.leaf.without(KEY_USAGE), R::NoKeyUsage),
            (
                "keyUsage that is not critical",
                |a| a.leaf.set(KEY_USAGE, false, usages(DIGITAL_SIGNATURE)),
                R::KeyUsageNotCritical,
            ),
            ("keyUsage for encipherment only", |a| usage(a, KEY_ENCIPHERMENT), R::NoDigitalSignature),
            ("keyUsage for contracts only", |a| usage(a, NON_REPUDIATION), R::NoDigitalSignature),
            ("keyUsage for agreement only", |a| usage(a, KEY_AGREEMENT), R::NoDigitalSignature),
            ("keyUsage for nothing", |a| usage(a, 0), R::NoDigitalSignature),
            ("keyCertSign", |a| usage(a, DIGITAL_SIGNATURE | KEY_CERT_SIGN), R::MaySignCertificates),
            ("cRLSign", |a| usage(a, DIGITAL_SIGNATURE | CRL_SIGN), R::MaySignCertificates),
            (
                "a second keyUsage with keyCertSign",
                |a| a.leaf.add(KEY_USAGE, true, usages(KEY_CERT_SIGN)),
                R::Extension,
            ),
            (
                "a second keyUsage behind the first, in the same extension",
                |a| {
                    let both = [usages(DIGITAL_SIGNATURE), usages(KEY_CERT_SIGN)].concat();
                    a.leaf.set(KEY_USAGE, true, both);
                },
                R::Extension,
            ),
            (
                "keyCertSign hidden among the bits declared unused",
                |a| a.leaf.set(KEY_USAGE, true, vec![3, 2, 7, DIGITAL_SIGNATURE | KEY_CERT_SIGN]),
                R::Extension,
            ),
            (
                "a keyUsage in pieces, as BER allows",
                |a| a.leaf.set(KEY_USAGE, true, tlv(0x23, &[&usages(DIGITAL_SIGNATURE)])),
                R::Extension,
            ),
            (
                "basicConstraints whose boolean says that there are elements in it",
                |a| a.leaf.set(BASIC_CONSTRAINTS, true, sequence(&[&tlv(0x21, &[&[0]])])),
                R::Extension,
            ),
            (
                "bytes behind basicConstraints",
                |a| {
                    a.leaf.set(BASIC_CONSTRAINTS, true, [basic_constraints(false, None), vec![5, 0]].concat())
                },
                R::Extension,
            ),
            (
                "an extension of the standard that is not read here, and cannot be",
                |a| a.leaf.set(AUTHORITY_KEY_ID, false, sequence(&[&[0x80, 20, 1]])),
                R::Extension,
            ),
            ("a keyUsage that is no bit string", |a| a.leaf.set(KEY_USAGE, true, vec![5, 0]), R::Extension),
            ("a purpose of server only", |a| purpose(a, &[SERVER_AUTH]), R::NoClientAuth),
            ("a purpose of client only", |a| purpose(a, &[CLIENT_AUTH]), R::NoServerAuth),
            ("any purpose, but neither by name", |a| purpose(a, &[ANY_USAGE]), R::NoServerAuth),
            ("no purpose in the extension", |a| purpose(a, &[]), R::NoServerAuth),
            ("a purpose of another kind only", |a| purpose(a, &[CODE_SIGNING]), R::NoServerAuth),
            ("the same purpose twice", |a| purpose(a, &[SERVER_AUTH, SERVER_AUTH]), R::NoClientAuth),
            ("any purpose, and client", |a| purpose(a, &[ANY_USAGE, CLIENT_AUTH]), R::NoServerAuth),
            ("any purpose, and server", |a| purpose(a, &[ANY_USAGE, SERVER_AUTH]), R::NoClientAuth),
            (
                "the missing purpose in a second extension",
                |a| {
                    purpose(a, &[CLIENT_AUTH]);
                    a.leaf.add(EXTENDED_KEY_USAGE, false, purposes(&[SERVER_AUTH]));
                },
                R::Extension,
            ),
            (
                "purposes of which webpki reads the first and no program the second",
                |a| {
                    let damaged = [purposes(&[CLIENT_AUTH])[2..].to_vec(), vec![6, 0x7f]].concat();
                    a.leaf.set(EXTENDED_KEY_USAGE, false, sequence(&[&damaged]));
                },
                R::Extension,
            ),
            (
                "an unknown critical extension",
                |a| a.leaf.add(UNKNOWN, true, vec![5, 0]),
                R::Path(PathError::UnsupportedCriticalExtension),
            ),
            (
                "policies that are critical, which nothing here can weigh",
                |a| a.leaf.add(CERTIFICATE_POLICIES, true, sequence(&[])),
                R::Path(PathError::UnsupportedCriticalExtension),
            ),
            (
                "an unknown extension twice",
                |a| {
                    a.leaf.add(UNKNOWN, false, vec![5, 0]);
                    a.leaf.add(UNKNOWN, false, vec![5, 0]);
                },
                R::Extension,
            ),
            (
                "a unique identifier, as in version 2",
                |a| a.leaf.unique_ids = tlv(0x81, &[&[0, 1]]),
                R::Path(PathError::TrailingData(webpki::DerTypeId::CertificateExtensions)),
            ),
        ],
    );
}

#[test]
fn svid_out_of_its_validity_is_refused() {
    let (now, day_ago) = (at(NOW), at(NOW - DAY));
    each_is_refused(
        with_intermediate,
        vec![
            (
                "expired",
                |a| (a.leaf.not_before, a.leaf.not_after) = (NOW - 2 * DAY, NOW - DAY),
                R::Expired { not_after: day_ago, now },
            ),
            (
                "expired a second ago",
                |a| a.leaf.not_after = NOW - 1,
                R::Expired { not_after: at(NOW - 1), now },
            ),
            (
                "expired a millisecond ago",
                |a| {
                    a.leaf.not_after = NOW;
                    a.now = Timestamp::from_millis(NOW * 1000 + 1);
                },
                R::Expired { not_after: now, now: Timestamp::from_millis(NOW * 1000 + 1) },
            ),
            (
                "an hour early",
                |a| a.leaf.not_before = NOW + 60 * MINUTE,
                R::FarFuture { not_before: at(NOW + 60 * MINUTE), now },
            ),
            (
                "a second more than a little early",
                |a| a.leaf.not_before = NOW + 10 * MINUTE + 1,
                R::FarFuture { not_before: at(NOW + 10 * MINUTE + 1), now },
            ),
            (
                "a little early: stored for later",
                |a| a.leaf.not_before = NOW + 10 * MINUTE,
                R::NotYetValid { not_before: at(NOW + 10 * MINUTE) },
            ),
            (
                "a little early and damaged: refused now",
                |a| {
                    a.leaf.not_before = NOW + MINUTE;
                    a.leaf.spoiled = |der| *der.last_mut().unwrap() ^= 1;
                },
                R::UnknownIssuer,
            ),
            (
                "dated back behind an issuer that is a little early: stored for the issuer",
                |a| a.intermediate().not_before = NOW + 2 * MINUTE,
                R::NotYetValid { not_before: at(NOW + 2 * MINUTE) },
            ),
            (
                "early, and its issuer earlier still",
                |a| {
                    a.leaf.not_before = NOW + MINUTE;
                    a.intermediate().not_before = NOW + 2 * MINUTE;
                },
                R::NotYetValid { not_before: at(NOW + 2 * MINUTE) },
            ),
            (
                "dated back behind an issuer that is just a little early: stored for the issuer",
                |a| a.intermediate().not_before = NOW + 10 * MINUTE,
                R::NotYetValid { not_before: at(NOW + 10 * MINUTE) },
            ),
            (
                "dated back behind an issuer that is a second more than a little early",
                |a| a.intermediate().not_before = NOW + 10 * MINUTE + 1,
                R::FarFuture { not_before: at(NOW + 10 * MINUTE + 1), now },
            ),
            (
                "dated back behind two issuers that are a little early: stored for the later one",
                |a| {
                    a.issuers.insert(0, authority("Lower", &OTHER));
                    (a.issuers[0].not_before, a.issuers[1].not_before) = (NOW + MINUTE, NOW + 2 * MINUTE);
                },
                R::NotYetValid { not_before: at(NOW + 2 * MINUTE) },
            ),
            (
                "early, and its issuer over by then",
                |a| {
                    a.leaf.not_before = NOW + 5 * MINUTE;
                    a.intermediate().not_after = NOW + 2 * MINUTE;
                },
                R::IssuerExpired { not_after: at(NOW + 2 * MINUTE), now: at(NOW + 5 * MINUTE) },
            ),
            (
                "dated back behind an issuer that is an hour early",
                |a| a.intermediate().not_before = NOW + 60 * MINUTE,
                R::FarFuture { not_before: at(NOW + 60 * MINUTE), now },
            ),
            (
                "the end before the beginning",
                |a| (a.leaf.not_before, a.leaf.not_after) = (NOW + DAY, NOW - DAY),
                R::EmptyValidity { not_before: at(NOW + DAY), not_after: day_ago },
            ),
            (
                "the end at the beginning",
                |a| (a.leaf.not_before, a.leaf.not_after) = (NOW, NOW),
                R::EmptyValidity { not_before: now, not_after: now },
            ),
            (
                "an issuer that has expired",
                |a| a.intermediate().not_after = NOW - DAY,
                R::IssuerExpired { not_after: day_ago, now },
            ),
            (
                "an issuer that expired a second ago",
                |a| a.intermediate().not_after = NOW - 1,
                R::IssuerExpired { not_after: at(NOW - 1), now },
            ),
            (
                "an issuer whose end is before its beginning",
                |a| (a.intermediate().not_before, a.intermediate().not_after) = (NOW + DAY, NOW - DAY),
                R::Path(PathError::InvalidCertValidity),
            ),
            (
                "times with the offset of a time zone",
                |a| a.leaf.validity = Some(utc_times("250101000000+0000", "270101000000+0000")),
                R::Path(PathError::BadDerTime),
            ),
            (
                "times without seconds",
                |a| a.leaf.validity = Some(utc_times("2501010000Z", "2701010000Z")),
                R::Path(PathError::BadDerTime),
            ),
            (
                "times of which there is no such day",
                |a| a.leaf.validity = Some(utc_times("250230000000Z", "270101000000Z")),
                R::Malformed { index: 0 },
            ),
            (
                "a device whose clock stands at the beginning of time",
                |a| a.now = Timestamp::from_millis(i64::MIN),
                R::FarFuture { not_before: at(NOW - MINUTE), now: Timestamp::from_millis(i64::MIN) },
            ),
            (
                "a device whose clock stands at the end of time",
                |a| a.now = Timestamp::from_millis(i64::MAX),
                R::Expired { not_after: at(NOW + DAY), now: Timestamp::from_millis(i64::MAX) },
            ),
        ],
    );
}

fn not_pem(index: usize, why: &str) -> R {
    R::NotPem { index, why: why.into() }
}

#[test]
fn chain_of_other_than_certificates_is_refused() {
    const PRIVATE_KEY: &str = "-----BEGIN PRIVATE KEY-----\nMAAwAA==\n-----END PRIVATE KEY-----\n";
    each_is_refused(
        with_intermediate,
        vec![
            ("nothing", |a| a.rewritten = Vec::clear, R::EmptyChain),
            ("seven certificates", |a| a.appended = vec![self_signed(&a.leaf); 5], R::LongChain(7)),
            (
                "garbage",
                |a| a.rewritten = |p| p[0] = "garbage".into(),
                not_pem(0, "it has no -----BEGIN line"),
            ),
            ("the intermediate in the place of the leaf", |a| a.rewritten = |p| p.swap(0, 1), R::OtherKey),
            ("the intermediate alone", |a| a.rewritten = |p| drop(p.remove(0)), R::OtherKey),
            (
                "DER in base64 without the lines around it",
                |a| a.rewritten = |p| p[0] = p[0].lines().filter(|line| !line.starts_with('-')).collect(),
                not_pem(0, "it has no -----BEGIN line"),
            ),
            (
                "a certificate by the name that OpenSSL gives to one with trust settings",
                |a| a.rewritten = |p| p[0] = p[0].replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
                not_pem(0, "it is a TRUSTED CERTIFICATE"),
            ),
            (
                "a certificate by the name of a CRL",
                |a| a.rewritten = |p| p[0] = p[0].replace("CERTIFICATE", "X509 CRL"),
                not_pem(0, "it is a X509 CRL"),
            ),
            (
                "a certificate that begins as one thing and ends as another",
                |a| a.rewritten = |p| p[0] = PRIVATE_KEY.replace("BEGIN PRIVATE KEY", "BEGIN CERTIFICATE"),
                not_pem(0, "line 1: the CERTIFICATE that begins here is ended as PRIVATE KEY in line 3"),
            ),
            ("an empty text", |a| a.rewritten = |p| p[1].clear(), not_pem(1, "it is empty")),
            (
                "two in one text",
                |a| a.rewritten = |p| p[0] = p.concat(),
                not_pem(0, "it has 2 blocks, the second a CERTIFICATE"),
            ),
            (
                "a private key in place of the intermediate",
                |a| a.rewritten = |p| p[1] = PRIVATE_KEY.into(),
                not_pem(1, "it is a PRIVATE KEY"),
            ),
            (
                "a private key behind the certificate",
                |a| a.rewritten = |p| p[0].push_str(PRIVATE_KEY),
                not_pem(0, "it has 2 blocks, the second a PRIVATE KEY"),
            ),
            (
                "a text that ends in the middle",
                |a| a.rewritten = |p| p[0].truncate(200),
                not_pem(0, "line 1: the CERTIFICATE that begins here has no END line: the text is cut off"),
            ),
            (
                "base64 with a character that is none",
                |a| a.rewritten = |p| p[0].replace_range(40..41, "!"),
                not_pem(0, "line 2: \"!\" in the CERTIFICATE is not Base64"),
            ),
            (
                "a NUL in the text",
                |a| a.rewritten = |p| p[0].push('\0'),
                not_pem(0, "it has a NUL character"),
            ),
            ("bytes behind the certificate", |a| a.leaf.spoiled = |d| d.push(0), R::Malformed { index: 0 }),
            (
                "bytes behind the intermediate",
                |a| a.intermediate().spoiled = |d| d.push(0),
                R::Malformed { index: 1 },
            ),
            (
                "a last certificate that is not needed and cannot be read",
                |a| a.appended = vec![vec![0x30, 0]],
                R::Malformed { index: 2 },
            ),
            (
                "a certificate that ends early",
                |a| a.leaf.spoiled = |d| d.truncate(99),
                R::Malformed { index: 0 },
            ),
            (
                "a certificate of more than 16 kB",
                |a| a.leaf.add(UNKNOWN, false, vec![0; 16 * 1024]),
                R::Malformed { index: 0 },
            ),
            ("a serial number of no byte", |a| a.leaf.serial = vec![], R::Malformed { index: 0 }),
            (
                "a serial number with a needless zero",
                |a| a.leaf.serial = vec![0, 0x4d],
                R::Malformed { index: 0 },
            ),
            (
                "an intermediate's serial number with a needless byte of a negative one",
                |a| a.intermediate().serial = vec![0xff, 0x80],
                R::Malformed { index: 1 },
            ),
            (
                "a negative serial number",
                |a| a.leaf.serial = vec![0x80],
                R::Serial { index: 0, why: "its serial number is negative" },
            ),
            (
                "an intermediate's negative serial number",
                |a| a.intermediate().serial = vec![0xfe, 0x11],
                R::Serial { index: 1, why: "its serial number is negative" },
            ),
            (
                "a serial number of 21 bytes",
                |a| a.leaf.serial = vec![0x7f; 21],
                R::Serial { index: 0, why: "its serial number is longer than 20 bytes" },
            ),
            (
                "an intermediate's serial number of 64 bytes",
                |a| a.intermediate().serial = vec![0x7f; 64],
                R::Serial { index: 1, why: "its serial number is longer than 20 bytes" },
            ),
            ("version 1", |a| (a.leaf.version, a.leaf.extensions) = (None, Vec::new()), R::Version),
            ("version 1 that has extensions all the same", |a| a.leaf.version = Some(0), R::Version),
            ("version 2", |a| a.leaf.version = Some(1), R::Version),
            ("version 4", |a| a.leaf.version = Some(3), R::Version),
        ],
    );
}

#[test]
fn chain_signed_with_another_algorithm_is_refused() {
    const ALGORITHM: SvidError = R::Algorithm(Algorithms::MiafV0);
    fn rsa(response: &mut Response, signature: Signature) {
        response.root().key = &RSA_3072;
        response.leaf.signed = Some(signature);
    }
    each_is_refused(
        direct,
        vec![
            ("ECDSA with SHA-384", |a| a.leaf.signed = Some(Signature::EcdsaSha384), ALGORITHM),
            (
                "a P-384 issuer",
                |a| {
                    a.root().key = &P384;
                    a.leaf.signed = Some(Signature::EcdsaSha384);
                },
                ALGORITHM,
            ),
            ("a P-384 issuer that claims SHA-256", |a| a.root().key = &P384, ALGORITHM),
            ("an Ed25519 issuer", |a| a.root().key = &ED25519, ALGORITHM),
            (
                "RSA PKCS#1 v1.5",
                |a| {
                    a.root().key = &RSA_3072;
                    a.leaf.signed = Some(Signature::Pkcs1Sha256);
                },
                ALGORITHM,
            ),
            (
                "RSA-PSS with SHA-384",
                |a| {
                    a.root().key = &RSA_3072;
                    a.leaf.signed = Some(Signature::PssSha384);
                },
                ALGORITHM,
            ),
            ("ECDSA with SHA-1", |a| a.leaf.signed = Some(named("1.2.840.10045.4.1")), ALGORITHM),
            ("ECDSA with SHA-512", |a| a.leaf.signed = Some(named("1.2.840.10045.4.3.4")), ALGORITHM),
            (
                "ECDSA with a parameter that it does not have",
                |a| a.leaf.signed = Some(named_with_null("1.2.840.10045.4.3.2")),
                ALGORITHM,
            ),
            ("RSA PKCS#1 v1.5 with SHA-1", |a| rsa(a, named_with_null("1.2.840.113549.1.1.5")), ALGORITHM),
            ("RSA-PSS with SHA-1 for the mask", |a| rsa(a, pss(SHA_256, SHA_1, 32)), ALGORITHM),
            ("RSA-PSS with SHA-384 for the mask", |a| rsa(a, pss(SHA_256, SHA_384, 32)), ALGORITHM),
            ("RSA-PSS with SHA-1", |a| rsa(a, pss(SHA_1, SHA_1, 20)), ALGORITHM),
            ("RSA-PSS with a salt of 20 bytes", |a| rsa(a, pss(SHA_256, SHA_256, 20)), ALGORITHM),
            ("RSA-PSS with a salt of 64 bytes", |a| rsa(a, pss(SHA_256, SHA_256, 64)), ALGORITHM),
            ("RSA-PSS without parameters, which means SHA-1", |a| rsa(a, named(RSASSA_PSS)), ALGORITHM),
            (
                "RSA-PSS that a key for it alone signed, which wants another salt",
                |a| a.root().key = &RSA_3072_FOR_OTHER_PSS,
                ALGORITHM,
            ),
            (
                "RSA PKCS#1 v1.5 that a key for PSS alone signed",
                |a| {
                    a.root().key = &RSA_3072_FOR_PSS;
                    a.leaf.signed = Some(Signature::Pkcs1Sha256);
                },
                ALGORITHM,
            ),
            (
                "an RSA issuer of 2048 bits with a key for PSS alone",
                |a| a.root().key = &RSA_2048_FOR_PSS,
                R::WeakRsa(2048),
            ),
            ("an RSA issuer of 2048 bits", |a| a.root().key = &RSA_2048, R::WeakRsa(2048)),
            (
                "one algorithm inside the certificate and another outside",
                |a| a.leaf.claimed = Some(Signature::PssSha256),
                R::Path(PathError::SignatureAlgorithmMismatch),
            ),
            ("a P-384 key of the device's own", |a| a.leaf.key = &P384, ALGORITHM),
            ("an Ed25519 key of the device's own", |a| a.leaf.key = &ED25519, ALGORITHM),
            ("an RSA key of the device's own with 2048 bits", |a| a.leaf.key = &RSA_2048, R::WeakRsa(2048)),
        ],
    );
    each_is_refused(
        with_intermediate,
        vec![
            ("a P-384 intermediate", |a| a.intermediate().key = &P384, ALGORITHM),
            ("an Ed25519 intermediate", |a| a.intermediate().key = &ED25519, ALGORITHM),
            ("an Ed25519 root above it", |a| a.root().key = &ED25519, ALGORITHM),
            ("a P-384 root above it", |a| a.root().key = &P384, ALGORITHM),
            (
                "an intermediate signed with another salt",
                |a| {
                    a.root().key = &RSA_3072;
                    a.intermediate().signed = Some(pss(SHA_256, SHA_256, 20));
                },
                ALGORITHM,
            ),
            (
                "one algorithm inside the intermediate and another outside",
                |a| a.intermediate().claimed = Some(Signature::PssSha256),
                R::Path(PathError::SignatureAlgorithmMismatch),
            ),
            ("an intermediate of 2048 bits", |a| a.intermediate().key = &RSA_2048, R::WeakRsa(2048)),
            ("a root of 2048 bits above it", |a| a.root().key = &RSA_2048, R::WeakRsa(2048)),
            (
                "an intermediate signed with PKCS#1 v1.5",
                |a| {
                    a.root().key = &RSA_3072;
                    a.intermediate().signed = Some(Signature::Pkcs1Sha256);
                },
                ALGORITHM,
            ),
            (
                "an intermediate signed with ECDSA and SHA-384",
                |a| a.intermediate().signed = Some(Signature::EcdsaSha384),
                ALGORITHM,
            ),
        ],
    );
}

#[test]
fn chain_without_an_anchor_is_refused() {
    each_is_refused(
        with_intermediate,
        vec![
            ("an empty bundle", |a| a.bundle = Some(Vec::new()), R::UnknownIssuer),
            (
                "a bundle of another CA",
                |a| a.bundle = Some(vec![self_signed(&authority("Other", &OTHER))]),
                R::UnknownIssuer,
            ),
            (
                "a bundle of a CA with this name and another key",
                |a| a.bundle = Some(vec![self_signed(&authority("Root", &OTHER))]),
                R::UnknownIssuer,
            ),
            (
                "a bundle from before the CA went from RSA to ECDSA and did not change its name",
                |a| a.bundle = Some(vec![self_signed(&authority("Root", &RSA_3072))]),
                R::UnknownIssuer,
            ),
            (
                "a bundle from before the CA went from ECDSA to RSA and did not change its name",
                |a| {
                    a.bundle = Some(vec![self_signed(a.root())]);
                    a.root().key = &RSA_3072;
                },
                R::UnknownIssuer,
            ),
            (
                "a root that is in the response alone",
                |a| {
                    a.with_root = true;
                    a.bundle = Some(vec![self_signed(&authority("Other", &OTHER))]);
                },
                R::UnknownIssuer,
            ),
            ("no intermediate", |a| a.rewritten = |p| p.truncate(1), R::UnknownIssuer),
            (
                "a damaged signature",
                |a| a.leaf.spoiled = |der| *der.last_mut().unwrap() ^= 1,
                R::UnknownIssuer,
            ),
            (
                "a damaged signature of an RSA key",
                |a| {
                    a.intermediate().key = &RSA_3072;
                    a.leaf.spoiled = |der| *der.last_mut().unwrap() ^= 1;
                },
                R::UnknownIssuer,
            ),
            (
                "a damaged signature of an RSA key that is for PSS alone",
                |a| {
                    a.intermediate().key = &RSA_3072_FOR_PSS;
                    a.leaf.spoiled = |der| *der.last_mut().unwrap() ^= 1;
                },
                R::UnknownIssuer,
            ),
            (
                "a damaged signature on the intermediate",
                |a| a.intermediate().spoiled = |der| *der.last_mut().unwrap() ^= 1,
                R::UnknownIssuer,
            ),
        ],
    );
}

#[test]
fn issuer_that_may_not_issue_the_leaf_is_refused() {
    /// A second intermediate between the leaf and the first.
    fn lengthen(response: &mut Response) {
        response.issuers.insert(0, authority("Lower", &OTHER));
    }
    each_is_refused(
        with_intermediate,
        vec![
            (
                "an intermediate that is no CA",
                |a| a.intermediate().set(BASIC_CONSTRAINTS, true, basic_constraints(false, None)),
                R::IssuerIsNoAuthority,
            ),
            (
                "an intermediate without basicConstraints",
                |a| a.intermediate().without(BASIC_CONSTRAINTS),
                R::IssuerIsNoAuthority,
            ),
            (
                "another SVID as the intermediate",
                |a| a.issuers[0].extensions = a.leaf.extensions.clone(),
                R::IssuerIsNoAuthority,
            ),
            (
                "an intermediate without keyCertSign",
                |a| a.intermediate().set(KEY_USAGE, true, usages(DIGITAL_SIGNATURE | CRL_SIGN)),
                R::IssuerMayNotSign,
            ),
            (
                "an intermediate with keyCertSign in a second keyUsage",
                |a| {
                    a.intermediate().set(KEY_USAGE, true, usages(CRL_SIGN));
                    a.intermediate().add(KEY_USAGE, true, usages(KEY_CERT_SIGN));
                },
                R::Path(PathError::ExtensionValueInvalid),
            ),
            (
                "an intermediate that may have no other below it, and has",
                |a| {
                    a.intermediate().set(BASIC_CONSTRAINTS, true, basic_constraints(true, Some(0)));
                    lengthen(a);
                },
                R::PathTooLong,
            ),
            (
                "an intermediate for servers only",
                |a| a.intermediate().set(EXTENDED_KEY_USAGE, false, purposes(&[SERVER_AUTH])),
                R::IssuerPurpose,
            ),
            (
                "an intermediate for any purpose, but not for this one by name",
                |a| a.intermediate().set(EXTENDED_KEY_USAGE, false, purposes(&[ANY_USAGE])),
                R::IssuerPurpose,
            ),
            (
                "an intermediate for no purpose",
                |a| a.intermediate().set(EXTENDED_KEY_USAGE, false, purposes(&[])),
                R::IssuerPurpose,
            ),
            (
                "an intermediate with an unknown extension twice",
                |a| {
                    a.intermediate().add(UNKNOWN, false, vec![5, 0]);
                    a.intermediate().add(UNKNOWN, false, vec![5, 0]);
                },
                R::Extension,
            ),
            (
                "an intermediate with bytes behind its keyUsage",
                |a| a.intermediate().set(KEY_USAGE, true, [usages(KEY_CERT_SIGN), vec![5, 0]].concat()),
                R::Extension,
            ),
            (
                "an intermediate that allows no intermediate, and another above it that allows none either",
                |a| {
                    lengthen(a);
                    a.issuers[0].set(BASIC_CONSTRAINTS, true, basic_constraints(true, Some(0)));
                    a.issuers[1].set(BASIC_CONSTRAINTS, true, basic_constraints(true, Some(0)));
                },
                R::PathTooLong,
            ),
            (
                "an intermediate with an unknown critical extension",
                |a| a.intermediate().add(UNKNOWN, true, vec![5, 0]),
                R::Path(PathError::UnsupportedCriticalExtension),
            ),
            (
                "an intermediate of version 1",
                |a| (a.issuers[0].version, a.issuers[0].extensions) = (None, Vec::new()),
                R::Path(PathError::UnsupportedCertVersion),
            ),
            (
                "an intermediate for DNS names that the leaf's is not among",
                |a| {
                    san(a, &[uri(DEVICE_ID), dns("device.other.example")]);
                    let constraints = name_constraints(dns("factory.example"));
                    a.intermediate().add(NAME_CONSTRAINTS, true, constraints);
                },
                R::Path(PathError::NameConstraintViolation),
            ),
            (
                "an intermediate with constraints on URIs, which nothing here can weigh",
                |a| {
                    let constraints = name_constraints(uri("factory.example"));
                    a.intermediate().add(NAME_CONSTRAINTS, true, constraints);
                },
                R::Path(PathError::NameConstraintViolation),
            ),
        ],
    );
}

#[test]
fn anchor_that_may_not_issue_the_leaf_is_refused() {
    fn constraints(response: &mut Response, ca: bool, path_length: Option<u8>) {
        response.root().set(BASIC_CONSTRAINTS, true, basic_constraints(ca, path_length));
    }
    each_is_refused(
        with_intermediate,
        vec![
            ("an anchor that is no CA", |a| constraints(a, false, None), R::IssuerIsNoAuthority),
            (
                "an anchor without basicConstraints",
                |a| a.root().without(BASIC_CONSTRAINTS),
                R::IssuerIsNoAuthority,
            ),
            (
                "an anchor without keyCertSign",
                |a| a.root().set(KEY_USAGE, true, usages(DIGITAL_SIGNATURE | CRL_SIGN)),
                R::IssuerMayNotSign,
            ),
            ("an anchor that allows no intermediate", |a| constraints(a, true, Some(0)), R::PathTooLong),
            (
                "an anchor that allows one intermediate, and two",
                |a| {
                    constraints(a, true, Some(1));
                    a.issuers.insert(0, authority("Lower", &OTHER));
                },
                R::PathTooLong,
            ),
            (
                "an anchor for DNS names that the leaf's is not among",
                |a| {
                    san(a, &[uri(DEVICE_ID), dns("device.other.example")]);
                    a.root().add(NAME_CONSTRAINTS, true, name_constraints(dns("factory.example")));
                },
                R::Path(PathError::NameConstraintViolation),
            ),
            (
                "an anchor with constraints on URIs, which nothing here can weigh",
                |a| a.root().add(NAME_CONSTRAINTS, true, name_constraints(uri("factory.example"))),
                R::Path(PathError::NameConstraintViolation),
            ),
        ],
    );
    each_is_refused(
        direct,
        vec![
            (
                "a leaf that signed itself and is the anchor",
                |a| {
                    a.leaf.subject = name("device");
                    a.issuers = vec![a.leaf.clone()];
                },
                R::IssuerIsNoAuthority,
            ),
            (
                "another device's SVID as the anchor",
                |a| {
                    let mut other = a.leaf.clone();
                    (other.subject, other.key) = (name("other device"), &OTHER);
                    a.issuers = vec![other];
                },
                R::IssuerIsNoAuthority,
            ),
            (
                "an anchor as the leaf",
                |a| {
                    a.leaf = a.root().clone();
                },
                R::CertificateAuthority,
            ),
        ],
    );
}

#[test]
fn svid_for_another_key_is_refused() {
    let response = direct();
    let chain = Chain::from_pem(&response.pems()).unwrap();
    let bundle = bundle_of(&[self_signed(&response.issuers[0])]);
    let domain = domain();
    for asked in [OTHER.spki.as_slice(), RSA_3072.spki.as_slice(), &[]] {
        let expected = expectation(&domain, MIAF_V0, None, asked);
        assert_eq!(validate(&chain, &expected, &bundle, at(NOW)), Err(SvidError::OtherKey));
    }
}
