//! Chains of strange shapes, from people who mean harm and from CAs that mean well.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CidrSubnet, CustomExtension, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls_pki_types::pem::PemObject as _;

use super::chain::{MAX_CERTIFICATE, MAX_CERTIFICATES};
use super::*;
use version_1::version_1;

#[path = "../../../tests/support/version_1.rs"]
mod version_1;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn named(organization: &str, name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    if !organization.is_empty() {
        distinguished.push(DnType::OrganizationName, organization);
    }
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Factory", name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn root(params: CertificateParams) -> Authority {
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn below(params: CertificateParams, issuer: &Authority) -> Authority {
    CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), issuer).unwrap()
}

fn server_params() -> CertificateParams {
    let mut params = CertificateParams::new(["mis.example".into(), "192.0.2.1".into()]).unwrap();
    params.distinguished_name = named("Factory", "mis");
    params
}

fn server(params: CertificateParams, issuer: &Authority) -> CertificateDer<'static> {
    params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().clone()
}

fn critical(id: &[u64], content: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(id, content.to_vec());
    extension.set_criticality(true);
    extension
}

const POLICIES: &[u64] = &[2, 5, 29, 32];
/// SEQUENCE { SEQUENCE { 1.2.3.4 } }
const A_POLICY: &[u8] = &[0x30, 7, 0x30, 5, 6, 3, 0x2a, 3, 4];

fn in_ca_file(certificates: &[&CertificateDer<'static>]) -> LoadedTrust {
    LoadedTrust {
        certificates: certificates.iter().map(|&certificate| certificate.clone()).collect(),
        provisioned: certificates
            .iter()
            .map(|c| webpki::anchor_from_trusted_cert(c).unwrap().to_owned())
            .collect(),
        ..LoadedTrust::default()
    }
}

fn pinned(certificate: &CertificateDer<'_>) -> LoadedTrust {
    let pin = pin_of(&EndEntityCert::try_from(certificate).unwrap().subject_public_key_info());
    LoadedTrust { pins: vec![pin], ..LoadedTrust::default() }
}

/// Presents a chain. Of a refusal: the words.
fn present(trust: LoadedTrust, chain: &[&CertificateDer<'static>]) -> Result<TrustSource, String> {
    present_as("mis.example", trust, chain)
}

fn present_as(
    name: &str,
    trust: LoadedTrust,
    chain: &[&CertificateDer<'static>],
) -> Result<TrustSource, String> {
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let observation = Arc::new(HandshakeObservation::default());
    let verifier = Verifier::new(Arc::new(trust), algorithms, observation.clone());
    let others: Vec<_> = chain[1..].iter().map(|&certificate| certificate.clone()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    match verifier.verify_server_cert(chain[0], &others, &name, &[], UnixTime::now()) {
        Ok(_) => Ok(observation.trust_source()),
        Err(_) => Err(observation.untrusted().unwrap().to_string()),
    }
}

fn processor_time(work: impl FnOnce()) -> Duration {
    let now = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let before = now();
    work();
    now() - before
}

#[test]
fn unsigned_chains_cost_little_however_they_are_arranged() {
    let anchor = root(ca_params("root"));
    let mut padded = ca_params("root");
    let padding = |arc| CustomExtension::from_oid_content(&[1, 2, 3, arc], vec![5, 0]);
    padded.custom_extensions = (0..1000).map(padding).collect();
    let cas: Vec<Authority> = (0..MAX_CERTIFICATES).map(|_| root(padded.clone())).collect();
    assert!((11_000..MAX_CERTIFICATE).contains(&cas[0].der().len()), "{}", cas[0].der().len());
    let leaf = server(server_params(), &cas[0]);
    let mut chain = vec![&leaf];
    chain.extend(cas.iter().skip(1).map(|ca| ca.der()));

    let system = || LoadedTrust { certificates: Vec::new(), ..in_ca_file(&[anchor.der()]) };
    let pins = || pinned(anchor.der());
    for trust in [in_ca_file(&[anchor.der()]), system(), pins()] {
        let cost = processor_time(|| {
            present(trust, &chain).unwrap_err();
        });
        // Half a second and more, were each tried with each.
        assert!(cost < Duration::from_millis(150), "{cost:?}");
    }
}

#[test]
fn chains_over_the_limits_are_not_parsed() {
    let anchor = root(ca_params("root"));
    let leaf = server(server_params(), &anchor);
    let garbage = CertificateDer::from(vec![0x30; 40]);
    let chain = |count: usize| {
        std::iter::once(&leaf).chain(std::iter::repeat_n(&garbage, count - 1)).collect::<Vec<_>>()
    };
    // As many as there may be, of whatever kind, do no harm to a good path.
    assert!(present(in_ca_file(&[anchor.der()]), &chain(MAX_CERTIFICATES)).is_ok());
    let why = present(in_ca_file(&[anchor.der()]), &chain(MAX_CERTIFICATES + 1)).unwrap_err();
    assert!(why.contains("presented 7 certificates, and no more than 6"), "{why}");

    let mut large = server_params();
    large.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3], vec![5; MAX_CERTIFICATE])];
    let large = server(large, &anchor);
    for chain in [[&large, &garbage], [&leaf, &large]] {
        let why = present(in_ca_file(&[anchor.der()]), &chain).unwrap_err();
        assert!(why.contains("no more than 16384 are read"), "{why}");
    }
}

#[test]
fn intermediates_are_used_in_any_order_and_cross_signed() {
    let (old, new) = (root(ca_params("old")), root(ca_params("new")));
    let issuer = below(ca_params("issuer"), &new);
    let lower = below(ca_params("lower"), &issuer);
    // The new root's key, certified by the old one.
    let cross = new.key().serialize_der();
    let cross =
        CertifiedIssuer::signed_by(ca_params("new"), KeyPair::try_from(cross).unwrap(), &old).unwrap();
    let leaf = server(server_params(), &lower);
    let (issuer, lower, cross) = (issuer.der(), lower.der(), cross.der());
    for others in [[lower, issuer, cross], [cross, issuer, lower], [issuer, cross, lower]] {
        for anchor in [&old, &new] {
            let [first, second, third] = others;
            let chain = [&leaf, first, second, third, first];
            assert_eq!(present(in_ca_file(&[anchor.der()]), &chain), Ok(TrustSource::Provisioned));
        }
    }
}

#[test]
fn critical_policies_are_accepted_where_none_is_required() {
    let anchor = root(ca_params("root"));
    let with = |extensions: Vec<CustomExtension>, mut params: CertificateParams| {
        params.custom_extensions = extensions;
        params
    };
    let policies = || critical(POLICIES, A_POLICY);
    let any = || critical(&[2, 5, 29, 54], &[2, 1, 0]);
    // SEQUENCE { [0] 0 }: an explicit policy is required at once.
    let constraints = || critical(&[2, 5, 29, 36], &[0x30, 3, 0x80, 1, 0]);
    let not_critical = || CustomExtension::from_oid_content(&[2, 5, 29, 36], vec![0x30, 3, 0x80, 1, 0]);
    // A qualifier 1.2.3.4.
    let qualified = [0x30, 16, 0x30, 14, 6, 3, 0x2a, 3, 4, 0x30, 7, 0x30, 5, 6, 3, 0x2a, 3, 4];
    for (what, extensions, why) in [
        ("policies", vec![policies()], None),
        ("and none inhibited", vec![policies(), any()], None),
        ("required", vec![policies(), constraints()], Some("policyConstraints")),
        ("required, not critical", vec![policies(), not_critical()], Some("certificatePolicies")),
        ("an unknown qualifier", vec![critical(POLICIES, &qualified)], Some("qualifier")),
        ("unknown", vec![critical(&[1, 2, 3, 4], &[5, 0])], Some("1.2.3.4")),
        (
            "unknown, with policies",
            vec![policies(), critical(&[2, 5, 29, 9], &[5, 0])],
            Some("subjectDirectoryAttributes"),
        ),
    ] {
        let issuer = below(with(extensions.clone(), ca_params("issuer")), &anchor);
        let under = server(server_params(), &issuer);
        let own = server(with(extensions, server_params()), &anchor);
        for chain in [vec![&under, issuer.der()], vec![&own]] {
            for trust in [in_ca_file(&[anchor.der()]), pinned(anchor.der())] {
                let chain = [&chain[..], &[anchor.der()]].concat();
                match (present(trust, &chain), why) {
                    (Ok(TrustSource::Provisioned), None) => {}
                    (Err(words), Some(why)) if words.contains(why) => in_words(&words),
                    (got, _) => panic!("{what}: {got:?}"),
                }
            }
        }
        // What is there is signed all the same.
        let mut forged = own.to_vec();
        let position = forged.windows(3).position(|id| id == [0x55, 0x1d, 17]).unwrap();
        forged[position + 10] ^= 1;
        assert!(present(in_ca_file(&[anchor.der()]), &[&forged.into()]).is_err());
    }
}

fn constrained(permitted: Vec<GeneralSubtree>, excluded: Vec<GeneralSubtree>) -> CertificateParams {
    let mut params = ca_params("constrained");
    params.name_constraints =
        Some(NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded });
    params
}

fn directory(organization: &str) -> GeneralSubtree {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, organization);
    GeneralSubtree::DirectoryName(name)
}

#[test]
fn name_constraints_on_directory_names_are_processed() {
    let dns = |name: &str| GeneralSubtree::DnsName(name.into());
    for (what, permitted, excluded, fine) in [
        ("permitted", vec![directory("Factory")], vec![], true),
        ("of another case", vec![directory("FACTORY")], vec![], true),
        ("another permitted", vec![directory("Other")], vec![], false),
        ("one of two permitted", vec![directory("Other"), directory("Factory")], vec![], true),
        ("excluded", vec![], vec![directory("fACTORY")], false),
        ("another excluded", vec![], vec![directory("Other")], true),
        ("both", vec![directory("Factory")], vec![directory("Factory")], false),
        ("and a DNS name", vec![directory("Factory"), dns("mis.example")], vec![], true),
        ("and another DNS name", vec![directory("Factory"), dns("other.example")], vec![], false),
    ] {
        let anchor = root(ca_params("root"));
        let params = constrained(permitted, excluded);
        let issuer = below(params.clone(), &anchor);
        let lower = below(ca_params("lower"), &issuer);
        let constrained_root = root(params);
        let (under, further, rooted) = (
            server(server_params(), &issuer),
            server(server_params(), &lower),
            server(server_params(), &constrained_root),
        );
        for (trust, chain) in [
            (in_ca_file(&[anchor.der()]), vec![&under, issuer.der()]),
            (in_ca_file(&[anchor.der()]), vec![&further, lower.der(), issuer.der()]),
            (in_ca_file(&[constrained_root.der()]), vec![&rooted]),
            (pinned(issuer.der()), vec![&under, issuer.der()]),
        ] {
            let presented = present(trust, &chain);
            assert_eq!(presented.is_ok(), fine, "{what}: {presented:?}");
            if let Err(why) = presented {
                assert!(why.contains("name constraints"), "{why}");
                in_words(&why);
            }
        }
    }
}

/// A copy without the constraints has the same reading as the original.
#[test]
fn copy_without_constraints_does_not_hide_them() {
    let anchor = root(ca_params("root"));
    let issuer = below(constrained(vec![directory("Other")], vec![]), &anchor);
    let leaf = server(server_params(), &issuer);
    let chain = [issuer.der().clone()];
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    let read = Chain::read(&leaf, &chain, algorithms).unwrap();
    let copy = CertificateDer::from(read.others()[0].reading.to_vec());
    assert_ne!(copy, chain[0]);
    for others in [[&copy, issuer.der()], [issuer.der(), &copy]] {
        let why = present(in_ca_file(&[anchor.der()]), &[&leaf, others[0], others[1]]).unwrap_err();
        assert!(why.contains("name constraints"), "{why}");
    }
    let why = present(in_ca_file(&[anchor.der()]), &[&leaf, &copy]).unwrap_err();
    assert!(why.contains("unknown issuer"), "{why}");
}

#[test]
fn name_constraints_on_addresses_apply_to_addresses() {
    let range = |text: &str| GeneralSubtree::IpAddress(text.parse::<CidrSubnet>().unwrap());
    let anchor = root(ca_params("root"));
    for (what, permitted, excluded, fine) in [
        ("another excluded", vec![], vec![range("10.0.0.0/8")], true),
        (
            "several excluded",
            vec![],
            vec![range("10.0.0.0/8"), range("172.16.0.0/12"), range("fd00::/8")],
            true,
        ),
        ("all of IPv6 excluded", vec![], vec![range("::/0")], true),
        ("excluded", vec![], vec![range("192.0.2.0/24")], false),
        ("permitted", vec![range("192.0.2.0/24")], vec![range("10.0.0.0/8")], true),
        ("another permitted", vec![range("10.0.0.0/8")], vec![], false),
    ] {
        let issuer = below(constrained(permitted, excluded), &anchor);
        let leaf = server(server_params(), &issuer);
        let presented = present(in_ca_file(&[anchor.der()]), &[&leaf, issuer.der()]);
        assert_eq!(presented.is_ok(), fine, "{what}: {presented:?}");
        if let Err(why) = presented {
            assert!(why.contains("IP addresses") && why.contains("192.0.2.1"), "{why}");
        }
    }
}

#[test]
fn certificate_in_ca_file_itself_needs_no_issuer() {
    let own = |adjust: &dyn Fn(&mut CertificateParams)| {
        let mut params = server_params();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        adjust(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    };
    let plain = own(&|_| {});
    assert_eq!(present(in_ca_file(&[&plain]), &[&plain]), Ok(TrustSource::Provisioned));
    let both = LoadedTrust { pins: pinned(&plain).pins, ..in_ca_file(&[&plain]) };
    assert_eq!(present(both, &[&plain]), Ok(TrustSource::Provisioned));
    assert!(present_as("192.0.2.1", in_ca_file(&[&plain]), &[&plain]).is_ok());
    let no_ca = own(&|params| params.is_ca = IsCa::NoCa);
    assert!(present(in_ca_file(&[&no_ca]), &[&no_ca]).is_ok());
    // One that a CA issued, as curl takes it.
    let issued = server(server_params(), &root(ca_params("root")));
    assert!(present(in_ca_file(&[&issued]), &[&issued]).is_ok());

    let another = own(&|_| {});
    let clients = own(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    let expired = own(&|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let strange = own(&|params| params.custom_extensions = vec![critical(&[1, 2, 3, 4], &[5, 0])]);
    let unnamed = own(&|params| params.subject_alt_names = Vec::new());
    let pins = LoadedTrust { pins: pinned(&another).pins, ..in_ca_file(&[&plain]) };
    for (what, trust, presented, why) in [
        ("another", in_ca_file(&[&plain]), &another, "CA:TRUE in basicConstraints"),
        (
            "in the system's store only",
            LoadedTrust { certificates: Vec::new(), ..in_ca_file(&[&plain]) },
            &plain,
            "CA:TRUE",
        ),
        ("not pinned", pins, &plain, "is pinned in spki_sha256"),
        ("for clients", in_ca_file(&[&clients]), &clients, "lacks serverAuth"),
        ("expired", in_ca_file(&[&expired]), &expired, "in ca_file itself, but it has expired"),
        (
            "strange",
            in_ca_file(&[&strange]),
            &strange,
            "critical extension that is not processed here: 1.2.3.4",
        ),
        ("without a name", in_ca_file(&[&unnamed]), &unnamed, "a common name does not count"),
    ] {
        let words = present(trust, &[presented]).unwrap_err();
        assert!(words.contains(why), "{what}: {words}");
        in_words(&words);
    }
    let words = present_as("other.example", in_ca_file(&[&plain]), &[&plain]).unwrap_err();
    assert!(words.contains("not for the name in the URL: it is for mis.example, 192.0.2.1"), "{words}");
}

/// No names of a library's variants, no lists of bytes, nothing of another's manual, and no novel.
fn in_words(why: &str) {
    for technical in ["Context", "{", "[", "https://", "::", "Some(", "OID", "Error"] {
        assert!(!why.contains(technical), "{technical}: {why}");
    }
    assert!(why.chars().count() < 900, "{why}");
}

/// `openssl`, for what rcgen rightly does not make.
struct Shop(tempfile::TempDir);

impl Shop {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn run(&self, words: &str) {
        let output =
            Command::new("openssl").args(words.split(' ')).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    fn certificate(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(Path::new(&self.0.path().join(name))).unwrap()
    }
}

#[test]
fn unsupported_signatures_are_named() {
    let shop = Shop::new();
    shop.write("server.ext", "subjectAltName = DNS:mis.example\n");
    shop.write("none.ext", "\n");
    shop.run("req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=server");
    for (key, digest, extensions, why) in [
        ("-newkey rsa:2048", "-sha1", "server.ext", "signed with RSA with SHA-1, which is not supported"),
        (
            "-newkey ec -pkeyopt ec_paramgen_curve:P-521",
            "-sha512",
            "server.ext",
            "signed with ECDSA with SHA-512",
        ),
        (
            "-newkey ec -pkeyopt ec_paramgen_curve:P-521",
            "-sha256",
            "server.ext",
            "key that is ECDSA on P-521",
        ),
        ("-newkey ec -pkeyopt ec_paramgen_curve:brainpoolP256r1", "-sha256", "server.ext", "brainpoolP256r1"),
        ("-newkey ed448", "", "server.ext", "signed with Ed448"),
        ("-newkey rsa:2048", "-sha256", "", "is of X.509 version 1"),
    ] {
        shop.run(&format!("req -x509 {key} -nodes -keyout ca.key -out ca.pem -subj /CN=root -days 9"));
        let extensions =
            if extensions.is_empty() { String::new() } else { format!(" -extfile {extensions}") };
        let digest = if digest.is_empty() { String::new() } else { format!(" {digest}") };
        shop.run(&format!(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 9 -out server.pem{digest}{extensions}"
        ));
        let (ca, mut leaf) = (shop.certificate("ca.pem"), shop.certificate("server.pem"));
        if extensions.is_empty() {
            let key = std::fs::read_to_string(shop.0.path().join("ca.key")).unwrap();
            leaf = version_1(&leaf, &KeyPair::from_pem(&key).unwrap()).into();
        }
        let words = present(in_ca_file(&[&ca]), &[&leaf]).unwrap_err();
        assert!(words.contains(why), "{key} {digest}: {words}");
        in_words(&words);
    }
}

#[test]
fn untrusted_server_is_described_in_words() {
    let anchor = root(ca_params("root"));
    let params = |adjust: &dyn Fn(&mut CertificateParams)| {
        let mut params = server_params();
        adjust(&mut params);
        params
    };
    let twice = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80]);
    let twice = params(&|p| {
        p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        p.custom_extensions = vec![twice.clone()];
    });
    let stranger = root(ca_params("a stranger"));
    let old = below(
        {
            let mut params = ca_params("old issuer");
            params.custom_extensions = vec![critical(&[2, 23, 133, 5, 4, 1], &[5, 0])];
            params
        },
        &anchor,
    );
    let under_old = server(server_params(), &old);
    for (chain, why) in [
        (vec![server(twice, &anchor)], "its certificate has an extension more than once (keyUsage)"),
        (vec![server(server_params(), &stranger)], "unknown issuer): it names \"O=Factory, CN=a stranger\""),
        (
            vec![under_old, old.der().clone()],
            "intermediate \"O=Factory, CN=old issuer\" in its chain has a critical extension",
        ),
        (vec![CertificateDer::from(vec![0x30, 3, 2, 1, 5])], "its certificate is damaged"),
        (
            vec![server(
                params(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
                &anchor,
            )],
            "extKeyUsage lacks serverAuth",
        ),
        (vec![server(params(&|p| p.subject_alt_names.clear()), &anchor)], "names no host at all"),
    ] {
        let words = present(in_ca_file(&[anchor.der()]), &chain.iter().collect::<Vec<_>>()).unwrap_err();
        assert!(words.contains(why), "{words}");
        in_words(&words);
    }
    // Names as long and as many as they like.
    let many = params(&|p| {
        let name =
            |i: usize| format!("{}.{i}.example", "x".repeat(60)).try_into().map(rcgen::SanType::DnsName);
        p.subject_alt_names = (0..150).map(|i| name(i).unwrap()).collect();
    });
    let words = present(in_ca_file(&[anchor.der()]), &[&server(many, &anchor)]).unwrap_err();
    assert!(words.contains("and 146 more"), "{words}");
    in_words(&words);
}
