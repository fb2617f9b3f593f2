//! `enroll = "est"`, `mis.est_url` and `rotate`.

use super::*;
use miaf_spiffe::NameKind;

const FILE: &str = "/etc/miaf-agent/config.toml";
const ID: &str = "spiffe://factory.example/margo/wfm/w1/client/line-7";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new(FILE), None)
}

/// One identity over EST, with these lines under it.
fn est(lines: &str) -> String {
    format!("[[identity]]\nname = \"wfm-client\"\nenroll = \"est\"\n{lines}")
}

fn only(text: &str) -> (IdentityConfig, EstConfig) {
    let config = parse(text).unwrap();
    let [identity] = &config.identities[..] else { panic!("{:?}", config.identities) };
    let Enrollment::Est(est) = identity.enroll.clone() else { panic!("{:?}", identity.enroll) };
    (identity.clone(), *est)
}

#[test]
fn token_is_a_file_a_credential_or_brought_by_command() {
    let (identity, brought) = only(&est(""));
    assert_eq!(identity.key.rotate, Rotate::Never, "a new key raises an alert at the MIS");
    let by_command = EstAuthorizationConfig::Token { source: None, remove: false };
    assert_eq!((brought.authorization, brought.tls12, brought.allow_nonstandard), (by_command, false, false));
    let file = Secret::File("/etc/miaf-agent/token".into());
    for (lines, source, remove) in [
        ("token = \"file:token\"", file.clone(), false),
        ("token = \"file:/etc/miaf-agent/token\"\nremove_token = true", file, true),
        ("token = \"credential:token\"\nremove_token = false", Secret::Credential("token".into()), false),
    ] {
        let (_, of) = only(&est(&format!("[identity.est]\n{lines}")));
        assert_eq!(
            of.authorization,
            EstAuthorizationConfig::Token { source: Some(source), remove },
            "{lines}"
        );
    }
}

#[test]
fn certificate_is_everything_that_the_factory_credential_can_be() {
    for (lines, certificate, key) in [
        (
            "cert_file = \"c.pem\"\nkey = \"file:c.key\"",
            FactoryCertificateLocation::File("/etc/miaf-agent/c.pem".into()),
            FactoryKeyLocation::File("/etc/miaf-agent/c.key".into()),
        ),
        (
            "cert = \"tpm:0x01c00002\"\nkey = \"tpm:0x81000001\"\nkey_auth = \"credential:auth\"",
            FactoryCertificateLocation::TpmNv(0x01c0_0002),
            FactoryKeyLocation::TpmHandle(0x8100_0001),
        ),
    ] {
        let (_, of) = only(&est(&format!("[identity.est]\n{lines}")));
        let read = of.certificate().unwrap();
        assert_eq!((&read.certificate, &read.key, read.kind), (&certificate, &key, CredentialKind::Est));
        assert_eq!(of.token(), None);
    }
}

#[test]
fn rotation_is_a_switch_a_number_or_an_age() {
    for (value, rotate) in [
        ("true", Rotate::Always),
        ("false", Rotate::Never),
        ("12", Rotate::AfterRenewals(12)),
        ("\"90d\"", Rotate::AfterAge(90 * DAY)),
    ] {
        let (identity, _) = only(&est(&format!("[identity.key]\nrotate = {value}")));
        assert_eq!(identity.key.rotate, rotate);
        assert_eq!(parse(&format!("[key]\nrotate = {value}")).unwrap().key.rotate, rotate);
    }
    for value in ["0", "-1", "100001", "\"soon\"", "\"1s\"", "\"99999d\""] {
        let error = parse(&est(&format!("[identity.key]\nrotate = {value}"))).unwrap_err();
        assert!(error.to_string().contains("identity.key.rotate: "), "{error}");
        assert!(error.hint.unwrap().contains("a number of renewals"));
    }
}

#[test]
fn device_over_est_has_to_be_allowed() {
    let device =
        "spiffe_id = \"spiffe://factory.example/margo/device/3f2b8f5e-0000-4000-8000-000000000001\"\n";
    let error = parse(&est(device)).unwrap_err().to_string();
    assert!(error.contains("it does not name a WFM Client"), "{error}");
    let (identity, of) = only(&est(&format!("{device}[identity.est]\nallow_nonstandard = true")));
    assert!(of.allow_nonstandard && identity.enroll.name_kind() == NameKind::Device);
    let client = format!("spiffe_id = \"{ID}\"\n[identity.est]\nallow_nonstandard = true");
    assert!(parse(&est(&client)).is_err(), "then it is a device's");
}

#[test]
fn wrong_est_is_named_with_line_key_and_hint() {
    for (lines, line, says, hint) in [
        ("[identity.est]\ntoken = \"user:secret\"", 5, "identity.est.token: it names neither", "file:PATH"),
        ("[identity.est]\ncert_file = \"c\"", 4, "identity.est: it names no key", "key = "),
        ("[identity.est]\nkey = \"file:k\"", 4, "identity.est: it names no certificate", "cert_file"),
        (
            "[identity.est]\ncert_file = \"c\"\nkey = \"k\"",
            6,
            "identity.est.key: it names neither",
            "file:PATH",
        ),
        (
            "[identity.est]\ntoken = \"file:t\"\ncert_file = \"c\"\nkey = \"file:k\"",
            5,
            "identity.est.token: excludes cert_file",
            "Remove one",
        ),
        ("[identity.est]\nremove_token = true", 5, "only the file of a token can be removed", "file:PATH"),
        (
            "[identity.est]\ntoken = \"credential:t\"\nremove_token = true",
            6,
            "only the file of a token can be removed",
            "file:PATH",
        ),
        ("[identity.est]\ncommon_name = \"\"", 5, "1 to 64 bytes", "line-7"),
        ("[identity.est]\ncommon_name = \"a\\nb\"", 5, "1 to 64 bytes", "line-7"),
        ("[identity.est]\nrequest_spiffe_id = \"x\"", 5, "it is not a SPIFFE ID", ""),
        (
            "[identity.est]\nrequest_spiffe_id = \"spiffe://a/b\"",
            5,
            "it does not name a WFM Client",
            "/margo/wfm/<wfm-id>/client/<client-id>",
        ),
        ("svid_file = \"c\"", 4, "identity.svid_file: it is only allowed", "Remove it"),
    ] {
        let error = parse(&est(lines)).unwrap_err();
        crate::hint::assert_apart(&error);
        let shown = error.to_string();
        assert!(shown.starts_with(&format!("{FILE}:{line}: ")) && shown.contains(says), "{lines}: {shown}");
        assert!(error.hint.unwrap_or_default().contains(hint), "{lines}");
    }
    let other = "[[identity]]\nname = \"a\"\nenroll = \"manual\"\n[identity.est]\n";
    assert!(
        parse(other)
            .unwrap_err()
            .to_string()
            .contains("identity.est: it is only allowed with enroll = \"est\"")
    );
}

#[test]
fn endpoint_is_configured_or_in_a_discovery_document() {
    let mis = |lines: &str| format!("[mis]\n{lines}\n{}", est(""));
    let endpoint = "https://mis.example:8443/.well-known/est/line";
    let with =
        |source: &str| parse(&mis(&format!("{source}\nest_url = \"{endpoint}\""))).unwrap().mis.unwrap();
    let bundle = "bundle_file = \"b.json\"\ntrust_domain = \"factory.example\"";
    for source in [bundle, "discovery_url = \"https://mis.example/margo\""] {
        assert_eq!(with(source).est_url.unwrap().as_str(), endpoint);
    }
    assert!(parse(&mis("discovery_url = \"https://mis.example/margo\"")).is_ok());
    let error = parse(&mis(bundle)).unwrap_err();
    assert!(error.to_string().contains("needs the address of an EST endpoint"), "{error}");
    assert!(error.hint.unwrap().contains("est_url"));
    for url in [
        "http://mis.example/",
        "https://a:b@mis.example/est",
        "https://mis.example/est?x",
        "https://mis.example/#a",
    ] {
        let error = parse(&mis(&format!("{bundle}\nest_url = \"{url}\""))).unwrap_err().to_string();
        assert!(error.contains("mis.est_url: "), "{error}");
    }
}

#[test]
fn token_of_two_identities_is_warned_of() {
    let identity = |name: &str, lines: &str| {
        format!("[[identity]]\nname = \"{name}\"\nenroll = \"est\"\n[identity.est]\n{lines}\n")
    };
    let named = |client: &str| {
        format!(
            "token = \"file:token\"\nrequest_spiffe_id = \"spiffe://factory.example/margo/wfm/w1/client/{client}\""
        )
    };
    let (file, credential) = ("token = \"file:token\"".to_owned(), "token = \"credential:token\"".to_owned());
    for (of, warnings) in [
        (vec![file.clone()], 0),
        (vec![file.clone(), file.clone()], 1),
        (vec![file.clone(), "token = \"file:/etc/miaf-agent/./token\"".into()], 1),
        (vec![file.clone(), file.clone(), file.clone()], 2),
        (vec![credential.clone(), credential.clone()], 1),
        (vec![file.clone(), credential.clone()], 0),
        (vec![file.clone(), "token = \"file:token-2\"".into()], 0),
        (vec![String::new(), String::new()], 0),
        // The account of a CA that copies what is requested.
        (vec![named("line-7"), named("line-8")], 0),
        (vec![named("line-7"), file.clone()], 1),
        (vec!["cert_file = \"c.pem\"\nkey = \"file:token\"".into(), file], 0),
    ] {
        let text: String =
            of.iter().zip(["a", "b", "c"]).map(|(lines, name)| identity(name, lines)).collect();
        let found = parse(&text).unwrap().warnings();
        assert_eq!(found.len(), warnings, "{text}: {found:?}");
        for warning in found {
            assert!(warning.what.starts_with("the identities \"a\" and "), "{warning:?}");
            assert!(warning.hint.is_some());
        }
    }
}
