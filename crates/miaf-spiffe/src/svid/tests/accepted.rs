//! Responses that must be accepted: the nearest neighbours of those that are refused.

use super::*;

fn limit_root(response: &mut Response, path_length: u8) {
    response.root().set(BASIC_CONSTRAINTS, true, basic_constraints(true, Some(path_length)));
}

#[test]
fn allowed_responses_are_accepted() {
    each_is_accepted(
        direct,
        vec![
            ("issued by the root", |_| {}, ()),
            ("the root appended", |a| a.with_root = true, ()),
            ("a renewal for the same device", |a| a.renewing = Some(DEVICE_ID), ()),
            (
                "a subject, and a SAN that is not critical",
                |a| {
                    a.leaf.subject = name("device");
                    a.leaf.set(SUBJECT_ALT_NAME, false, names(&[uri(DEVICE_ID)]));
                },
                (),
            ),
            ("a subject, and a SAN that is critical", |a| a.leaf.subject = name("device"), ()),
            (
                "names of every other kind in addition to the URI, which do not matter",
                |a| {
                    let address = tlv(0x87, &[&[192, 0, 2, 1]]);
                    let directory = tlv(0xa4, &[&name("device")]);
                    san(a, &[directory, tlv(0x81, &[b"device@factory.example"]), uri(DEVICE_ID), address]);
                },
                (),
            ),
            (
                "a common name that is another device's, which does not matter",
                |a| a.leaf.subject = name(SIBLING_ID),
                (),
            ),
            ("a DNS name in addition to the URI", |a| san(a, &[dns("device.example"), uri(DEVICE_ID)]), ()),
            (
                "a UUID that is not of version 4, as in the example of the SUP",
                |a| san(a, &[uri(NOT_VERSION_4_ID)]),
                (),
            ),
            ("no extended key usage", |a| a.leaf.without(EXTENDED_KEY_USAGE), ()),
            (
                "one purpose more than the two",
                |a| a.leaf.set(EXTENDED_KEY_USAGE, true, purposes(&[ANY_USAGE, CLIENT_AUTH, SERVER_AUTH])),
                (),
            ),
            (
                "a purpose more, and each twice",
                |a| {
                    let all = [CODE_SIGNING, CLIENT_AUTH, SERVER_AUTH, CLIENT_AUTH, SERVER_AUTH];
                    a.leaf.set(EXTENDED_KEY_USAGE, false, purposes(&all));
                },
                (),
            ),
            ("no basicConstraints", |a| a.leaf.without(BASIC_CONSTRAINTS), ()),
            (
                "one usage more than the signature",
                |a| a.leaf.set(KEY_USAGE, true, usages(DIGITAL_SIGNATURE | KEY_ENCIPHERMENT)),
                (),
            ),
            (
                "every usage that an SVID may have",
                |a| {
                    let all = DIGITAL_SIGNATURE | NON_REPUDIATION | KEY_ENCIPHERMENT | KEY_AGREEMENT;
                    a.leaf.set(KEY_USAGE, true, usages(all));
                },
                (),
            ),
            (
                "a usage in the second byte",
                |a| a.leaf.set(KEY_USAGE, true, vec![3, 3, 7, DIGITAL_SIGNATURE | KEY_AGREEMENT, 0x80]),
                (),
            ),
            (
                "basicConstraints that are not critical",
                |a| a.leaf.set(BASIC_CONSTRAINTS, false, basic_constraints(false, None)),
                (),
            ),
            (
                "a path length that means nothing without cA",
                |a| a.leaf.set(BASIC_CONSTRAINTS, true, basic_constraints(false, Some(0))),
                (),
            ),
            (
                "policies that are not critical",
                |a| a.leaf.add(CERTIFICATE_POLICIES, false, sequence(&[])),
                (),
            ),
            (
                "the key identifier of another issuer: a hint for finding, and no rule",
                |a| a.leaf.add(AUTHORITY_KEY_ID, false, sequence(&[&tlv(0x80, &[&[7; 20]])])),
                (),
            ),
            (
                "two unknown extensions of different kinds",
                |a| {
                    a.leaf.add(UNKNOWN, false, vec![5, 0]);
                    a.leaf.add("1.3.6.1.4.1.99999.2", false, vec![5, 0]);
                },
                (),
            ),
            ("an unknown extension that is not critical", |a| a.leaf.add(UNKNOWN, false, vec![5, 0]), ()),
            ("an RSA-PSS issuer of 3072 bits", |a| a.root().key = &RSA_3072, ()),
            ("an RSA key of the device's own with 3072 bits", |a| a.leaf.key = &RSA_3072, ()),
            (
                "a root whose signature on itself is PKCS#1 v1.5",
                |a| {
                    a.root().key = &RSA_3072;
                    a.root().signed = Some(Signature::Pkcs1Sha256);
                },
                (),
            ),
            ("a root that has expired: its validity does not count", |a| a.root().not_after = NOW - DAY, ()),
            ("an issuer with an RSA key that is for PSS alone", |a| a.root().key = &RSA_3072_FOR_PSS, ()),
            (
                "an issuer with an RSA key that is for PSS alone and with these parameters",
                |a| a.root().key = &RSA_3072_FOR_THIS_PSS,
                (),
            ),
            (
                "RSA-PSS with the name written out by hand, as the refused ones are",
                |a| {
                    a.root().key = &RSA_3072;
                    a.leaf.signed = Some(pss(SHA_256, SHA_256, 32));
                },
                (),
            ),
            (
                "ECDSA with the name written out by hand",
                |a| a.leaf.signed = Some(named("1.2.840.10045.4.3.2")),
                (),
            ),
            ("a root that is not valid yet", |a| a.root().not_before = NOW + DAY, ()),
            ("a root without keyUsage", |a| a.root().without(KEY_USAGE), ()),
            ("a root that allows no intermediate, and there is none", |a| limit_root(a, 0), ()),
            (
                "a root with an unknown critical extension: what it is for, the bundle says",
                |a| a.root().add(UNKNOWN, true, vec![5, 0]),
                (),
            ),
            (
                "a root of version 1",
                |a| (a.issuers[0].version, a.issuers[0].extensions) = (None, Vec::new()),
                (),
            ),
            (
                "five years",
                |a| {
                    a.leaf.not_after = NOW + 5 * 365 * DAY;
                    a.root().not_after = NOW + 50 * 365 * DAY; // past 2049: another form of time
                },
                (),
            ),
            ("no end, as RFC 5280 writes it", |a| a.leaf.not_after = 253_402_300_799, ()),
            ("one minute", |a| (a.leaf.not_before, a.leaf.not_after) = (NOW - 30, NOW + 30), ()),
            ("from the first second of 1970 on", |a| a.leaf.not_before = 0, ()),
            ("from this second on", |a| a.leaf.not_before = NOW, ()),
            ("until this second", |a| a.leaf.not_after = NOW, ()),
            (
                "until this second, of which not all is over",
                |a| {
                    a.leaf.not_after = NOW + 1;
                    a.now = Timestamp::from_millis(NOW * 1000 + 999);
                },
                (),
            ),
            (
                "times written out by hand",
                |a| a.leaf.validity = Some(utc_times("250101000000Z", "270101000000Z")),
                (),
            ),
            ("a serial number of zero", |a| a.leaf.serial = vec![0], ()),
            ("a serial number of 20 bytes", |a| a.leaf.serial = vec![0x7f; 20], ()),
            (
                "a serial number of 20 bytes and a zero in front",
                |a| a.leaf.serial = [vec![0], vec![0xff; 20]].concat(),
                (),
            ),
            (
                "two anchors, of which the second fits",
                |a| {
                    let (other, root) = (authority("Other", &OTHER), self_signed(a.root()));
                    a.bundle = Some(vec![self_signed(&other), root]);
                },
                (),
            ),
            (
                "two anchors of one name and key, of which only the second is a CA",
                |a| {
                    let root = self_signed(a.root());
                    a.root().without(BASIC_CONSTRAINTS);
                    a.bundle = Some(vec![self_signed(a.root()), root]);
                },
                (),
            ),
            (
                "two anchors of one name and key, of which only the first is a CA",
                |a| {
                    let root = self_signed(a.root());
                    a.root().without(BASIC_CONSTRAINTS);
                    a.bundle = Some(vec![root, self_signed(a.root())]);
                },
                (),
            ),
            (
                "two anchors of one name, of which the second fits",
                |a| {
                    let (old, root) = (authority("Root", &RSA_2048), self_signed(a.root()));
                    a.bundle = Some(vec![self_signed(&old), root]);
                },
                (),
            ),
        ],
    );
    each_is_accepted(
        with_intermediate,
        vec![
            ("issued by an intermediate", |_| {}, ()),
            ("the root appended", |a| a.with_root = true, ()),
            (
                "an unrelated certificate appended",
                |a| a.appended = vec![self_signed(&authority("Other", &OTHER))],
                (),
            ),
            (
                "a root appended that has expired",
                |a| {
                    a.with_root = true;
                    a.root().not_after = NOW - DAY;
                },
                (),
            ),
            (
                "the intermediate as the anchor",
                |a| {
                    let anchor = a.issuers[0].certify(&a.issuers[1]);
                    a.bundle = Some(vec![anchor]);
                },
                (),
            ),
            ("six certificates", |a| a.appended = vec![self_signed(&authority("Other", &OTHER)); 4], ()),
            ("a certificate of nearly 16 kB", |a| a.leaf.add(UNKNOWN, false, vec![0; 15 * 1024]), ()),
            ("the leaf twice", |a| a.rewritten = |p| p.insert(1, p[0].clone()), ()),
            ("the intermediate twice", |a| a.rewritten = |p| p.push(p[1].clone()), ()),
            (
                "two intermediates, the upper one first",
                |a| {
                    a.issuers.insert(0, authority("Lower", &OTHER));
                    a.rewritten = |pems| pems.swap(1, 2);
                },
                (),
            ),
            (
                "five intermediates",
                |a| (0..4).for_each(|n| a.issuers.insert(0, authority(&format!("Lower {n}"), &OTHER))),
                (),
            ),
            (
                "an intermediate that names its trust domain",
                |a| a.intermediate().add(SUBJECT_ALT_NAME, false, names(&[uri("spiffe://factory.example")])),
                (),
            ),
            (
                "an intermediate of another trust domain, as SPIFFE allows where trust is chained",
                |a| a.intermediate().add(SUBJECT_ALT_NAME, false, names(&[uri("spiffe://other.example")])),
                (),
            ),
            ("an intermediate that begins this second", |a| a.intermediate().not_before = NOW, ()),
            ("an intermediate that ends this second", |a| a.intermediate().not_after = NOW, ()),
            ("an intermediate that ends before the leaf", |a| a.intermediate().not_after = NOW + MINUTE, ()),
            (
                "an intermediate for clients only, which limits servers nowhere in RFC 5280",
                |a| a.intermediate().set(EXTENDED_KEY_USAGE, false, purposes(&[CLIENT_AUTH])),
                (),
            ),
            (
                "an intermediate that allows no other below it, and there is none",
                |a| a.intermediate().set(BASIC_CONSTRAINTS, true, basic_constraints(true, Some(0))),
                (),
            ),
            (
                "an intermediate whose keyUsage and basicConstraints are not critical",
                |a| {
                    a.intermediate().set(BASIC_CONSTRAINTS, false, basic_constraints(true, None));
                    a.intermediate().set(KEY_USAGE, false, usages(KEY_CERT_SIGN));
                },
                (),
            ),
            ("an intermediate without keyUsage", |a| a.intermediate().without(KEY_USAGE), ()),
            ("an RSA-PSS intermediate of 3072 bits", |a| a.intermediate().key = &RSA_3072, ()),
            (
                "an intermediate for DNS names, and a leaf that has none",
                |a| {
                    let constraints = name_constraints(dns("factory.example"));
                    a.intermediate().add(NAME_CONSTRAINTS, true, constraints);
                },
                (),
            ),
            ("a path exactly as long as the root allows", |a| limit_root(a, 1), ()),
            (
                "a root that allows no intermediate, and its certificate for its own next key",
                |a| {
                    a.intermediate().subject = name("Root");
                    limit_root(a, 0);
                },
                (),
            ),
            (
                "explanations around the certificate, and no line end after it",
                |a| {
                    a.rewritten = |pems| {
                        for pem in pems {
                            *pem = format!("Subject: device\n\n{}", pem.trim_end());
                        }
                    };
                },
                (),
            ),
            (
                "an intermediate cross-signed by a root that is too weak, and by one that is not",
                |a| {
                    let weak = authority("Weak Root", &RSA_2048);
                    a.bundle = Some(vec![self_signed(&weak), self_signed(a.root())]);
                    a.appended = vec![a.issuers[0].certify(&a.issuers[1])];
                    *a.root() = weak;
                },
                (),
            ),
            (
                "one line of base64",
                |a| {
                    a.rewritten = |pems| {
                        for pem in pems {
                            let lines: Vec<_> = pem.lines().collect();
                            let body = lines[1..lines.len() - 1].concat();
                            *pem = format!("{}\n{body}\n{}", lines[0], lines[lines.len() - 1]);
                        }
                    };
                },
                (),
            ),
            (
                "lines of 19 characters, which is no multiple of four",
                |a| {
                    a.rewritten = |pems| {
                        for pem in pems {
                            let lines: Vec<_> = pem.lines().collect();
                            let body = lines[1..lines.len() - 1].concat();
                            let mut wrapped = format!("{}\n", lines[0]);
                            for line in body.as_bytes().chunks(19) {
                                wrapped.push_str(std::str::from_utf8(line).unwrap());
                                wrapped.push('\n');
                            }
                            *pem = wrapped + lines[lines.len() - 1];
                        }
                    };
                },
                (),
            ),
            (
                "lines that end as on Windows",
                |a| {
                    a.rewritten = |pems| pems.iter_mut().for_each(|pem| *pem = pem.replace('\n', "\r\n"));
                },
                (),
            ),
        ],
    );
}
