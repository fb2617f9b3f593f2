use std::sync::Arc;

use super::*;

mod est;
mod identities;

const FILE: &str = "/etc/miaf-agent/config.toml";
const FULL: &str = include_str!("../../tests/data/config-full.toml");

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new(FILE), None).map_err(|e| {
        crate::hint::assert_apart(&e);
        e.with_hint().to_string()
    })
}

#[test]
fn documented_file_is_parsed_with_every_key() {
    let config = parse(FULL).unwrap();
    let mis = config.mis.unwrap();
    assert_eq!(mis.source.to_string(), "https://mis.factory.example/.well-known/margo");
    let TrustDomainSource::Discovery { bundle_origins, .. } = &mis.source else { panic!("{mis:?}") };
    assert_eq!(bundle_origins[0].as_str(), "https://bundles.factory.example/");
    let staleness = Staleness { max_age: Some(7 * DAY), when_stale: WhenStale::Withdraw };
    assert_eq!(config.staleness, staleness);
    assert_eq!(mis.trust.ca_file.unwrap(), Path::new("/etc/miaf-agent/mis-ca.pem"));
    assert_eq!(mis.trust.spki_sha256.len(), 1);
    let ProxyChoice::At(url) = &mis.proxy.choice else { panic!("{:?}", mis.proxy) };
    assert_eq!(url.with_secrets(), "http://proxy.factory.example:3128/");
    assert_eq!(mis.proxy.auth, Some(Secret::Credential("proxy.auth".into())));
    assert_eq!(mis.proxy.no_proxy.unwrap(), ["localhost", ".factory.example", "10.0.0.0/8"]);
    let bootstrap = config.bootstrap.unwrap();
    assert_eq!(bootstrap.certificate, FactoryCertificateLocation::File("/etc/miaf-agent/factory.pem".into()));
    assert_eq!(bootstrap.intermediates_file.unwrap(), Path::new("/etc/miaf-agent/line.pem"));
    assert_eq!(bootstrap.key, FactoryKeyLocation::File("/etc/miaf-agent/factory.key".into()));
    assert_eq!(bootstrap.key_auth, Some(Secret::Credential("factory-key".into())));
    let [device, client, gateway, bound] = &config.identities[..] else { panic!("{:?}", config.identities) };
    assert_eq!((device.name.as_str(), &device.enroll), ("device", &Enrollment::FactoryCert));
    assert_eq!(
        device.spiffe_id.as_ref().unwrap().to_string(),
        "spiffe://factory.example/margo/device/87f4893b-a029-42c1-8777-d214f7f76120"
    );
    assert_eq!(
        client.enroll,
        Enrollment::Manual { svid_file: Some("/etc/miaf-agent/wfm-client.pem".into()) }
    );
    assert_eq!((&*client.users, client.group.as_deref()), (&["wfm".to_owned()][..], Some("wfm")));
    assert_eq!(
        (client.key_group.as_deref(), client.notify.as_deref()),
        (Some("wfm-key"), Some("wfm-client.service"))
    );
    assert_eq!(client.key, IdentityKey { provider: ProviderKind::Software, rotate: Rotate::Never });
    assert!(client.publish_intermediates && !device.publish_intermediates);
    let key = Secret::Credential("gateway.key".into());
    assert_eq!(
        gateway.enroll,
        Enrollment::Installed { svid_file: "/etc/miaf-agent/gateway.pem".into(), key }
    );
    let Enrollment::WfmBinding(wfm) = &bound.enroll else { panic!("{bound:?}") };
    assert_eq!(
        (wfm.url.as_str(), wfm.client_handle.as_deref()),
        ("https://wfm.factory.example/", Some("line-7"))
    );
    assert_eq!(config.key.parent, ParentChoice::Persistent(0x8100_0001));
    assert_eq!(config.key.owner_auth, Some(Secret::Credential("tpm-owner".into())));
    assert_eq!(config.renewal_window, (0.4, 0.6));
    assert_eq!((config.retry_base, config.retry_cap), (Duration::from_secs(5), Duration::from_secs(3600)));
    assert_eq!(config.files.key_group.as_deref(), Some("miaf-sign"));
    assert_eq!(config.socket.admin_path, Path::new("/run/miaf-agent/admin.sock"));
    assert_eq!(config.socket.signatures_per_minute, 600);
}

#[test]
fn empty_file_is_an_unconfigured_device_with_defaults() {
    let config = parse("# nothing yet\n").unwrap();
    assert!(config.mis.is_none() && config.bootstrap.is_none());
    assert_eq!(config.state_dir, Path::new("/var/lib/miaf-agent"));
    assert_eq!(config.files.dir, Path::new("/var/lib/miaf-agent/svid"));
    assert_eq!(config.key.provider, ProviderKind::Tpm);
    assert_eq!(config.key.rotate, Rotate::Always);
}

#[test]
fn state_directory_of_systemd_is_the_default() {
    let given = Some(Path::new("/var/lib/private/miaf"));
    let load = |text| Config::parse(text, Path::new(FILE), given).unwrap().state_dir;
    assert_eq!(load(""), Path::new("/var/lib/private/miaf"));
    assert_eq!(load("state_dir = \"state\""), Path::new("/etc/miaf-agent/state"));
}

#[test]
fn factory_credential_may_be_in_the_tpm() {
    let text = "[bootstrap]\ncert = \"tpm:0x01c90000\"\nkey = \"tpm:0x81020000\"";
    let bootstrap = parse(text).unwrap().bootstrap.unwrap();
    assert_eq!(bootstrap.certificate, FactoryCertificateLocation::TpmNv(0x01c9_0000));
    assert_eq!(bootstrap.key, FactoryKeyLocation::TpmHandle(0x8102_0000));
    let text = "[bootstrap]\ncert = \"file:factory.pem\"\nkey = \"file:factory.key\"";
    let certificate = parse(text).unwrap().bootstrap.unwrap().certificate;
    assert_eq!(certificate, FactoryCertificateLocation::File("/etc/miaf-agent/factory.pem".into()));
}

#[test]
fn origin_is_completed_with_the_well_known_path() {
    let config = parse("[mis]\norigin = \"https://mis.example:8443\"").unwrap();
    assert_eq!(config.mis.unwrap().source.to_string(), "https://mis.example:8443/.well-known/margo");
}

#[test]
fn bundle_may_be_named_in_place_of_a_discovery_document() {
    let source = |lines: &str| {
        let named = parse(&format!("[mis]\ntrust_domain = \"factory.example\"\n{lines}")).unwrap();
        let unnamed = parse(&format!("[mis]\n{lines}")).unwrap().mis.unwrap();
        assert_eq!(unnamed.trust_domain, None, "it is learnt");
        let named = named.mis.unwrap();
        assert_eq!(named.trust_domain, TrustDomain::parse("factory.example").ok());
        assert_eq!(named.source, unnamed.source);
        named.source
    };
    let url = Url::parse("https://mis.example/b.json?x=1").unwrap();
    assert_eq!(source("bundle_url = \"https://mis.example/b.json?x=1\""), TrustDomainSource::BundleUrl(url));
    let path = PathBuf::from("/etc/miaf-agent/bundle.json");
    assert_eq!(source("bundle_file = \"bundle.json\""), TrustDomainSource::BundleFile(path));
    let guarded = |lines: &str| {
        let guard = "spiffe_id = \"spiffe://factory.example/margo/wfm/w/client/c\"";
        let text = format!("[mis]\n{lines}\n[[identity]]\nname = \"a\"\nenroll = \"manual\"\n{guard}\n");
        parse(&text).unwrap().mis.unwrap().trust_domain
    };
    assert_eq!(guarded("bundle_file = \"b\"").unwrap().as_str(), "factory.example");
    assert_eq!(guarded("origin = \"https://a\""), None, "the discovery document says it");
    let origins = source("origin = \"https://a\"\nbundle_origins = [\"https://b\", \"https://c:8443/\"]");
    let TrustDomainSource::Discovery { bundle_origins, .. } = origins else { panic!("{origins:?}") };
    let origins: Vec<_> = bundle_origins.iter().map(|url| url.origin().ascii_serialization()).collect();
    assert_eq!(origins, ["https://b", "https://c:8443"]);
}

#[test]
fn limit_on_the_age_of_the_bundle_shortens_its_poll_interval() {
    let bundle = |lines: &str| {
        let config = parse(&format!("[bundle]\n{lines}")).unwrap();
        (config.bundle_refresh.as_secs(), config.staleness)
    };
    assert_eq!(bundle(""), (300, Staleness { max_age: None, when_stale: WhenStale::Serve }));
    let week = Some(7 * DAY);
    let withdraw = WhenStale::Withdraw;
    assert_eq!(
        bundle("max_age = \"7d\"\nwhen_stale = \"withdraw\""),
        (300, Staleness { max_age: week, when_stale: withdraw })
    );
    assert_eq!(bundle("max_age = \"60s\"").0, 30);
    assert_eq!(bundle("refresh = \"10s\"\nmax_age = \"60s\"").0, 10);
}

#[test]
fn wrong_value_is_named_with_file_line_and_key() {
    for (text, line, says) in [
        ("[mis]\ndiscovery_ulr = \"x\"", 2, "unknown field `discovery_ulr`"),
        ("[miss]", 1, "unknown field `miss`"),
        ("[mis.trust]\nca_file = tls-ca.pem", 2, "a string is in quotes"),
        ("[mis.trust]\nca_file = 5.pem", 2, "a string is in quotes"),
        ("[mis.trust]\nca_file = mis-ca.pem", 2, "a string is in quotes"),
        ("[mis]\norigin =", 2, "a value is missing"),
        ("[mis]\norigin = 5", 2, "invalid type: integer `5`, expected a string in quotes"),
        ("[mis]\nno_proxy = \"a, expected u32\"", 2, "a, expected u32\", expected a list"),
        ("[socket]\nmax_connections = \"6\"", 2, "invalid type: string \"6\", expected a whole number"),
        ("[key]\nrotate = \"yes\"", 2, "key.rotate: it is not an age"),
        ("[renewal]\nwindow = 0.5", 2, "expected a list of two"),
        ("mis = 5", 1, "expected a table"),
        ("[identity]\nname = \"a\"", 1, "[[identity]], in double brackets"),
        ("[mis]\n# no url", 1, "Add discovery_url"),
        ("[mis]\ndiscovery_url = \"http://mis.example/\"", 2, "https://"),
        ("[mis]\ndiscovery_url = \"mis.example\"", 2, "not a URL"),
        ("[mis]\ndiscovery_url = \"https://a/\"\norigin = \"https://a\"", 3, "excludes"),
        ("[mis]\norigin = \"https://a/path\"", 2, "Use discovery_url"),
        (
            "[mis]\norigin = \"https://a\"\nbundle_url = \"https://a/b\"\ntrust_domain = \"a\"",
            3,
            "excludes origin",
        ),
        ("[mis]\nbundle_file = \"b\"\ndiscovery_url = \"https://a/\"", 2, "excludes discovery_url"),
        ("[mis]\nbundle_file = \"b\"\nbundle_url = \"https://a/\"", 2, "excludes bundle_url"),
        ("[mis]\nbundle_url = \"http://a/b\"\ntrust_domain = \"a\"", 2, "https://"),
        (
            "[mis]\nbundle_url = \"https://a/b\"\ntrust_domain = \"a\"\nbundle_origins = [\"https://a\"]",
            4,
            "excludes bundle_url",
        ),
        ("[mis]\norigin = \"https://a\"\nbundle_origins = []", 3, "allows no origin"),
        (
            "[mis]\norigin = \"https://a\"\nbundle_origins = [\"https://a\", \"https://a/b\"]",
            3,
            "only https://host",
        ),
        ("[mis]\norigin = \"https://a\"\nbundle_origins = [\"http://a\"]", 3, "must be an absolute https://"),
        ("[mis]\norigin = \"https://a\"\nbundle_origins = [\"bundles.example\"]", 3, "is not a URL"),
        ("[mis]\norigin = \"https://a\"\ntrust_domain = \"Factory\"", 3, "mis.trust_domain"),
        ("[mis]\norigin = \"https://a\"\n[mis.trust]\nspki_sha256 = [\"AAAA\"]", 4, "SHA-256"),
        ("[mis]\norigin = \"https://a\"\nproxy = \"proxy:3128\"", 3, "http://host:port"),
        ("[mis]\norigin = \"https://a\"\nproxy = \"https://proxy:3128\"", 3, "only http://"),
        ("[mis]\norigin = \"https://a\"\nproxy = \"socks5://proxy:1080\"", 3, "only http://"),
        ("[mis]\norigin = \"https://a\"\nproxy = \"http://proxy:3128/pac\"", 3, "without a path"),
        ("[mis]\norigin = \"https://a\"\nproxy_auth = \"user:password\"", 3, "credential:NAME"),
        ("[mis]\norigin = \"https://a\"\nproxy_auth = \"credential:../x\"", 3, "credential:NAME"),
        ("[mis]\norigin = \"https://a\"\nproxy_auth = \"credential:..\"", 3, "credential:NAME"),
        (
            "[mis]\norigin = \"https://a\"\nproxy = \"http://u:p@proxy\"\nproxy_auth = \"file:a\"",
            4,
            "Remove user and password",
        ),
        ("[mis]\norigin = \"https://a\"\nno_proxy = [\"a\", \"b,c\"]", 3, "Write a host name"),
        ("[mis]\norigin = \"https://a\"\nno_proxy = [\"*.example\"]", 3, "Write \".example\""),
        ("[bootstrap]\ncert_file = \"a\"\nkey = \"factory.key\"", 3, "file:PATH"),
        ("[bootstrap]\ncert_file = \"a\"\nkey = \"tpm:0x80000001\"", 3, "persistent handle"),
        ("[bootstrap]\nkey = \"file:a\"", 1, "Add cert_file"),
        ("[bootstrap]\ncert_file = \"a\"\ncert = \"file:a\"\nkey = \"file:a\"", 3, "excludes"),
        ("[bootstrap]\ncert = \"tpm:0x81000001\"\nkey = \"file:a\"", 2, "NV index"),
        ("[bootstrap]\ncert = \"a\"\nkey = \"file:a\"", 2, "NV index"),
        ("[bootstrap]\ncert_file = \"a\"\nkey = \"file:b\"\nkey_auth = \"secret\"", 4, "credential:NAME"),
        ("[bootstrap]\nmethod = \"token\"\ncert_file = \"a\"\nkey = \"file:b\"", 2, "unknown variant"),
        ("[key]\nprovider = \"hsm\"", 2, "unknown variant"),
        ("[key]\nprovider = \"software\"\nrequire = \"tpm\"", 3, "rules out provider"),
        ("[key]\nrequire = \"hsm\"", 2, "unknown variant"),
        ("[key]\ntcti = \"mssim:host=a\"", 2, "Set tcti to device:/dev/tpmrm0"),
        ("[key]\nparent = \"0x01c00001\"", 2, "such as \"0x81000001\""),
        ("[key]\nparent = \"srk\"", 2, "Write \"auto\""),
        ("[key]\nowner_auth = \"secret\"", 2, "Write \"file:PATH\""),
        ("[renewal]\nwindow = [0.6, 0.4]", 2, "fractions"),
        ("[retry]\nbase = \"5 parsecs\"", 2, "not a duration"),
        ("[retry]\nbase = \"1h\"\ncap = \"1m\"", 3, "must not be below"),
        ("[bundle]\nrefresh = \"30d\"", 2, "must lie between"),
        ("[bundle]\nmax_age = \"0s\"", 2, "must lie between 1s and"),
        ("[bundle]\nmax_age = \"week\"", 2, "not a duration"),
        ("[bundle]\nwhen_stale = \"hide\"", 2, "unknown variant"),
        ("[log]\nlevel = \"loud\"", 2, "unknown variant"),
        ("[mis\n", 1, ""),
        ("state_dir = 5", 1, "invalid type"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(&format!("{FILE}:{line}: ")), "{text:?}: {error}");
        assert!(error.contains(says), "{text:?}: {error}");
    }
}

#[test]
fn proxy_password_is_never_shown() {
    let config = parse("[mis]\norigin = \"https://a\"\nproxy = \"http://user:hunter2@proxy:3128\"").unwrap();
    let shown = format!("{config:?}");
    assert!(shown.contains("ProxyUrl(http://proxy:3128)") && !shown.contains("hunter2"), "{shown}");
    for bad in ["http://user:hunter2@proxy/path", "https://user:hunter2@proxy", "//user:hunter2@proxy"] {
        let error = parse(&format!("[mis]\norigin = \"https://a\"\nproxy = \"{bad}\"")).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn proxy_is_the_environments_unless_configured() {
    let through = |line: &str| {
        parse(&format!("[mis]\norigin = \"https://a\"\n{line}")).unwrap().mis.unwrap().proxy.choice
    };
    assert_eq!(through(""), ProxyChoice::Environment);
    assert_eq!(through("proxy = \"none\""), ProxyChoice::None);
}

/// A configuration directory with these files in it.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let file = directory.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    directory
}

fn load(directory: &tempfile::TempDir) -> Result<Config, String> {
    Config::load(&directory.path().join("config.toml"), None).map_err(|e| e.with_hint().to_string())
}

#[test]
fn drop_ins_overlay_the_file_by_key_in_order_of_their_names() {
    let directory = directory(&[
        ("config.toml", "[mis]\norigin = \"https://a\"\ntrust_domain = \"one\"\n[files]\ngroup = \"miaf\"\n"),
        ("config.d/20-site.toml", "mis.trust_domain = \"three\"\n[log]\nlevel = \"debug\""),
        ("config.d/10-line.toml", "[mis]\ntrust_domain = \"two\"\n[mis.trust]\nca_file = \"ca.pem\""),
        ("config.d/30-key.toml", "[bootstrap]\nkey = \"file:factory.key\""),
        ("config.d/31-certificate.toml", "[bootstrap]\ncert_file = \"factory.pem\""),
        ("config.d/.40-editor.toml", "not even TOML"),
        ("config.d/50-notes.txt", "nor this"),
    ]);
    let config = load(&directory).unwrap();
    let mis = config.mis.unwrap();
    assert_eq!(mis.source.to_string(), "https://a/.well-known/margo");
    assert_eq!(mis.trust_domain.unwrap().as_str(), "three");
    assert_eq!(config.files.group.as_deref(), Some("miaf"));
    assert_eq!(config.log_level, LogLevel::Debug);
    // One base for all of them: a path means the same wherever it is moved to.
    assert_eq!(mis.trust.ca_file.unwrap(), directory.path().join("ca.pem"));
    let key = FactoryKeyLocation::File(directory.path().join("factory.key"));
    assert_eq!(config.bootstrap.unwrap().key, key, "a table may be spread over files");
}

#[test]
fn drop_ins_alone_are_a_configuration() {
    let directory = directory(&[("config.d/a.toml", "[mis]\norigin = \"https://a\"")]);
    assert!(load(&directory).unwrap().mis.is_some());
}

#[test]
fn wrong_value_in_a_drop_in_is_named_with_its_file_and_line() {
    let main = "# one\n# two\n[mis]\norigin = \"https://a\"\n";
    for (drop_in, line, says) in [
        ("\n\n[retry]\nbase = \"soon\"", 4, "not a duration"),
        ("# ü\n[log]\nlevle = \"debug\"", 3, "unknown field `levle`"),
        ("[mis]\ndiscovery_url = \"https://b/\"", 0, "excludes"),
        ("[log\n", 1, ""),
        ("\n\n[files]\ngroup = \"\"\"not ended", 4, ""),
    ] {
        let directory = directory(&[
            ("config.toml", main),
            ("config.d/a.toml", ""),
            ("config.d/b.toml", drop_in),
            ("config.d/c.toml", "[bundle]\nrefresh = \"1m\""),
        ]);
        let error = load(&directory).unwrap_err();
        let place = match line {
            0 => format!("{}:4: ", directory.path().join("config.toml").display()),
            line => format!("{}:{line}: ", directory.path().join("config.d/b.toml").display()),
        };
        assert!(error.starts_with(&place) && error.contains(says), "{drop_in:?}: {error}");
    }
}

#[test]
fn unreadable_drop_in_is_an_error() {
    let directory = directory(&[("config.toml", ""), ("config.d/a.toml", "")]);
    std::os::unix::fs::symlink("/nowhere/b.toml", directory.path().join("config.d/b.toml")).unwrap();
    let error = load(&directory).unwrap_err();
    assert!(error.contains("b.toml: cannot be read"), "{error}");
}

#[test]
fn byte_order_mark_is_accepted_in_every_file() {
    let directory = directory(&[
        ("config.toml", "\u{feff}[mis]\norigin = \"https://a\"\n"),
        ("config.d/a.toml", "\u{feff}[log]\nlevel = \"debug\"\n"),
        ("config.d/b.toml", "\u{feff}[log]\nlevle = 1\n"),
    ]);
    let error = load(&directory).unwrap_err();
    assert!(error.contains("b.toml:2: unknown field `levle`"), "{error}");
    std::fs::remove_file(directory.path().join("config.d/b.toml")).unwrap();
    assert_eq!(load(&directory).unwrap().log_level, LogLevel::Debug);
    assert!(parse("\u{feff}[log]\nlevel = \"debug\"").is_ok());
}

#[test]
fn files_that_are_not_utf8_are_named_with_their_line() {
    let directory = directory(&[]);
    let file = directory.path().join("config.toml");
    for (content, says) in [
        (&b"# fine\n# sch\xf6n\n"[..], "config.toml:2: it is not UTF-8"),
        (b"\xff\xfe[\0m\0", "config.toml:1: it is UTF-16. Save it as UTF-8"),
        (b"a\0b", "config.toml:1: "),
    ] {
        std::fs::write(&file, content).unwrap();
        let error = load(&directory).unwrap_err();
        assert!(error.contains(says) && !error.contains('\0'), "{error}");
    }
    std::fs::write(&file, vec![b'#'; 2 << 20]).unwrap();
    assert!(load(&directory).unwrap_err().contains("larger than 1 MiB"));
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert!(load(&directory).unwrap_err().contains("config.toml: cannot be read: it is a directory"));
    std::fs::remove_dir(&file).unwrap();
    std::os::unix::fs::symlink("nowhere", &file).unwrap();
    assert!(load(&directory).unwrap_err().contains("No such file"), "a link to nowhere is no missing file");
}

#[test]
fn socket_path_is_one_that_the_system_allows() {
    let at = |key: &str, bytes: usize| parse(&format!("[socket]\n{key} = \"/{}\"", "s".repeat(bytes - 1)));
    assert_eq!(at("path", 107).unwrap().socket.path.as_os_str().len(), 107);
    for key in ["path", "sign_path", "admin_path"] {
        let error = at(key, 108).unwrap_err();
        assert!(error.starts_with(&format!("{FILE}:2: socket.{key}: ")), "{error}");
        assert!(error.contains("at most 107 bytes") && error.contains("has 108"), "{error}");
    }
    let error = parse(&format!("[socket]\npath = \"/{}/a\"", "s".repeat(100))).unwrap_err();
    assert!(error.contains("2: socket.sign_path") && error.contains("has 111"), "{error}");
    for bad in ["a\\u0000b", "/", ".."] {
        assert!(parse(&format!("[socket]\npath = \"{bad}\"")).unwrap_err().contains("not the path"), "{bad}");
    }
}

#[test]
fn readable_part_of_a_bad_configuration_is_salvaged() {
    let given = Some(Path::new("/given"));
    let salvage = |directory: &tempfile::TempDir| {
        Config::salvage(&directory.path().join("config.toml"), given).unwrap().config
    };
    let good = "state_dir = \"state\"\n[mis]\norigin = \"https://a\"\n[socket]\npath = \"a \\\" \
                b\"\nmax_connections = 0x10\n[workload_api]\nkey_users = [\"wfm\"]\n";
    // A wrong key or value.
    for bad in ["[log]\nlevle = 1\n", "[retry]\nbase = \"soon\"\n", "[bootstrap]\n"] {
        let directory = directory(&[("config.toml", good), ("config.d/a.toml", bad)]);
        load(&directory).unwrap_err();
        let config = salvage(&directory);
        assert_eq!(config.state_dir, directory.path().join("state"), "{bad}");
        assert_eq!(config.socket.path, directory.path().join("a \" b"));
        assert_eq!(config.socket.limits.connections, 16);
        assert_eq!(&*config.identities[0].users, ["wfm"]);
        assert!(config.mis.is_none() && config.bootstrap.is_none());
    }
    // No TOML at all, before and after what is.
    for (before, after) in [("nonsense\n", ""), ("", "[mis\n= 5\n\u{1}"), ("\u{feff}x = \n", "\"\"\"")] {
        let directory = directory(&[("config.toml", &format!("{before}{good}{after}"))]);
        let config = salvage(&directory);
        assert_eq!(config.state_dir, directory.path().join("state"), "{before}{after}");
        assert!(config.identities[0].users.is_empty(), "who is given a key may be what is missing");
    }
    let head = directory(&[(
        "config.toml",
        "[socket]\npath = \"/a\"\n[files\ngroup = \"b\"\n[log]\nlevel = \"debug\"",
    )]);
    let config = salvage(&head);
    assert_eq!((config.socket.group, config.log_level), (None, LogLevel::Debug));
    // A value that is bad by itself, one file that cannot be read, and nothing at all.
    let one = directory(&[
        ("config.toml", "[socket]\npath = 5\nsign_path = \"s\"\nmax_connections = 0\n[key]\ntcti = \"?\""),
        ("config.d/a.toml/x", ""),
    ]);
    let config = salvage(&one);
    assert_eq!(config.socket.path, Path::new(DEFAULT_SOCKET));
    assert_eq!(config.socket.sign_path, one.path().join("s"));
    assert_eq!(config.state_dir, Path::new("/given"));
    let noise = "[=\"\n".repeat(300_000);
    assert_eq!(salvage(&directory(&[("config.toml", &noise)])).state_dir, Path::new("/given"));
    assert_eq!(salvage(&directory(&[("config.toml/x", "")])).socket, parse("").unwrap().socket);
}

#[test]
fn salvage_knows_whether_the_state_directory_is_known() {
    let is_known = |files: &[(&str, &str)]| {
        let directory = directory(files);
        load(&directory).unwrap_err();
        Config::salvage(&directory.path().join("config.toml"), None).unwrap().is_state_known
    };
    let far = format!("#{}\nstate_dir = \"/data\"\n", "x".repeat(100_000));
    for text in [
        "state_dir = \"/data",
        "state_dir \"/data\"",
        "state_dir = 5",
        "state_dir = [\"/data\"]",
        "state_dir = \"/\\q\"",
        "x = 1 state_dir = \"/data\"",
        "\"state_dir = \"/data\"",
        "[socket]\nstate_dir = \"/data\"",
        "state_dir = \"/a\"\nstate_dir = \"/b\"",
        "# a\u{1}\rstate_dir = \"/data\"",
        "\0s\0t\0a\0t\0e\0_\0d\0i\0r\0 = \0/d\0",
        &far,
    ] {
        let bad = "[log]\nlevle = 1\n";
        assert!(!is_known(&[("config.toml", text), ("config.d/b.toml", bad)]), "{text:?}");
        assert!(!is_known(&[
            ("config.toml", "state_dir = \"/a\""),
            ("config.d/a.toml", text),
            ("config.d/b.toml", bad)
        ]));
        assert!(
            is_known(&[("config.toml", text), ("config.d/z.toml", "state_dir = \"/z\"\nnonsense")]),
            "{text:?}"
        );
    }
    for text in [
        "nonsense",
        "state_dir = \"/data\"\nnonsense",
        "\"state_dir\" = '/data' # where state_dir is\n[log\n",
        "#state_dir = \"/var/lib/miaf-agent\"\n[log\n",
        "[mis.trust]\nca_file = \"/data/state_dir/ca.pem\"\nold_state_dir = 1\n",
    ] {
        assert!(is_known(&[("config.toml", text)]), "{text:?}");
    }
    assert!(is_known(&[("config.toml/x", "")]), "of what cannot be read at all nothing is known");
}

#[test]
fn grants_are_not_salvaged_from_a_partial_configuration() {
    let rights = |files: &[(&str, &str)]| {
        let directory = directory(files);
        load(&directory).unwrap_err();
        let config = Config::salvage(&directory.path().join("config.toml"), None).unwrap().config;
        (config.socket.sign_group, config.identities[0].users.to_vec())
    };
    let granted = "[socket]\nsign_group = \"apps\"\n[workload_api]\nkey_users = [\"wfm\"]\n";
    let all = (Some("apps".to_owned()), vec!["wfm".to_owned()]);
    assert_eq!(rights(&[("config.toml", granted), ("config.d/a.toml", "[log]\nlevle = 1")]), all);
    let none = (None, vec![]);
    assert_eq!(rights(&[("config.toml", granted), ("config.d/a.toml/x", "")]), none, "a drop-in is not read");
    assert_eq!(rights(&[("config.toml", &format!("{granted}nonsense\n"))]), none);
    // One that was to change both, and says nothing that is understood.
    for bad in ["socket = 5\nworkload_api = 5\n", "socket.sign_group = 5\nworkload_api.key_users = \"x\"\n"] {
        assert_eq!(rights(&[("config.toml", granted), ("config.d/a.toml", bad)]), none, "{bad}");
    }
}

#[test]
fn files_below_the_state_directory_are_the_agents_own() {
    for (dir, is_own) in [
        ("", true),
        ("/s/state/a/b", true),
        ("/etc/ssl", false),
        ("/s/state/../x", false),
        ("/s/stateful", false),
    ] {
        let line = if dir.is_empty() { String::new() } else { format!("dir = \"{dir}\"") };
        let config = parse(&format!("state_dir = \"/s/state\"\n[files]\n{line}")).unwrap();
        assert_eq!(config.files.is_own, is_own, "{dir}");
    }
}

#[test]
fn size_and_number_of_the_files_are_limited() {
    let large = format!("#{}", " ".repeat(600 * 1024));
    let too_much = directory(&[("config.toml", &large), ("config.d/a.toml", &large)]);
    let error = load(&too_much).unwrap_err();
    assert!(error.contains("a.toml") && error.contains("larger than 1 MiB"), "{error}");

    let names: Vec<String> = (0..300).map(|n| format!("config.d/{n}.toml")).collect();
    let too_many = directory(&names.iter().map(|name| (name.as_str(), "")).collect::<Vec<_>>());
    assert!(load(&too_many).unwrap_err().contains("256 are allowed"));
}

#[test]
fn sockets_are_in_one_directory_by_default() {
    let socket = parse("[socket]\npath = \"run/a.sock\"\nsign_path = \"/x/s.sock\"").unwrap().socket;
    assert_eq!(socket.path, Path::new("/etc/miaf-agent/run/a.sock"));
    assert_eq!(socket.sign_path, Path::new("/x/s.sock"));
    assert_eq!(socket.admin_path, Path::new("/etc/miaf-agent/run/admin.sock"));
    assert_eq!(parse("").unwrap().socket.sign_path, Path::new("/run/miaf-agent/sign.sock"));
}

#[test]
fn guard_of_a_wfm_client_fits_its_wfm() {
    let entry = |guard: &str, handle: &str| {
        format!(
            "[mis]\norigin = \"https://mis.example\"\n[bootstrap]\ncert_file = \"/c\"\nkey = \"file:/k\"\n\
             [[identity]]\nname = \"device\"\nenroll = \"factory-cert\"\n\
             [[identity]]\nname = \"client\"\nenroll = \"wfm-binding\"\nspiffe_id = \"{guard}\"\n\
             [identity.wfm]\nurl = \"https://wfm.example\"\nid = \"w1\"\n{handle}"
        )
    };
    let (of_w1, handle) = ("spiffe://a.example/margo/wfm/w1/client/c1", "client_handle = \"c1\"\n");
    for handle in ["", handle] {
        assert!(parse(&entry(of_w1, handle)).is_ok());
        let said = parse(&entry("spiffe://a.example/margo/wfm/w2/client/c1", handle)).unwrap_err();
        assert!(said.contains("spiffe_id") && said.contains("[identity.wfm]"), "{said}");
    }
    assert!(parse(&entry("spiffe://a.example/margo/wfm/w1/client/c2", handle)).is_err());
    assert!(parse(&entry("spiffe://a.example/margo/wfm/w1/client/c2", "")).is_ok());
}
