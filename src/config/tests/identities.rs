//! `[[identity]]`: what is refused, how drop-ins are laid over it, and what is salvaged of it; and
//! the directories in which identities are published.

use super::*;

const DEVICE: &str = "[[identity]]\nname = \"device\"\nenroll = \"factory-cert\"\n";
const WFM: &str = "[identity.wfm]\nurl = \"https://wfm.example\"\nid = \"wfm-1\"\n";

fn identity(lines: &str) -> String {
    format!("[[identity]]\nname = \"wfm-client\"\n{lines}")
}

fn named(name: &str, lines: &str) -> String {
    format!("[[identity]]\nname = \"{name}\"\n{lines}\n")
}

fn names(config: &Config) -> Vec<&str> {
    config.identities.iter().map(|identity| identity.name.as_str()).collect()
}

#[test]
fn identity_is_read_with_its_defaults() {
    let text = format!(
        "{DEVICE}{}[key]\nprovider = \"software\"\nrotate = false\n[workload_api]\nkey_users = [\"wfm\"]\n",
        identity("enroll = \"manual\"\n")
    );
    let config = parse(&text).unwrap();
    let [device, client] = &config.identities[..] else { panic!("{:?}", config.identities) };
    assert_eq!(device.enroll, Enrollment::FactoryCert);
    assert_eq!(client.enroll, Enrollment::Manual { svid_file: None });
    assert_eq!((&*device.users, &*client.users), (&["wfm".to_owned()][..], &[][..]), "of the first alone");
    for identity in [device, client] {
        let key = IdentityKey { provider: ProviderKind::Software, rotate: Rotate::Never };
        assert_eq!(identity.key, key);
        assert_eq!((&identity.group, &identity.key_group, &identity.notify), (&None, &None, &None));
        assert!(!identity.publish_intermediates && identity.spiffe_id.is_none());
    }
    assert_eq!(
        parse("").unwrap().identities,
        vec![IdentityConfig::device(&parse("").unwrap().key, Arc::default())]
    );
}

#[test]
fn each_way_is_read_with_its_keys() {
    let way =
        |lines: &str| parse(&format!("{DEVICE}{}", identity(lines))).unwrap().identities[1].enroll.clone();
    let svid_file = || PathBuf::from("/etc/miaf-agent/a.pem");
    assert_eq!(
        way("enroll = \"manual\"\nsvid_file = \"a.pem\""),
        Enrollment::Manual { svid_file: Some(svid_file()) }
    );
    for (key_file, key) in [
        ("a.key", Secret::File("/etc/miaf-agent/a.key".into())),
        ("file:/k/a.key", Secret::File("/k/a.key".into())),
        ("credential:wfm.key", Secret::Credential("wfm.key".into())),
    ] {
        let lines = format!("enroll = \"installed\"\nsvid_file = \"a.pem\"\nkey_file = \"{key_file}\"");
        assert_eq!(way(&lines), Enrollment::Installed { svid_file: svid_file(), key });
    }
    let binding = format!("enroll = \"wfm-binding\"\n{WFM}client_handle = \"line.7\"\n");
    let Enrollment::WfmBinding(wfm) = way(&binding) else { panic!("another way") };
    assert_eq!((wfm.url.as_str(), &*wfm.wfm_id), ("https://wfm.example/", "wfm-1"));
    assert_eq!(wfm.client_handle.as_deref(), Some("line.7"));
}

/// Each with its line, its key, and a part of what the error says: message, then hint.
#[test]
fn wrong_identity_is_named_with_line_key_and_hint() {
    let manual = "enroll = \"manual\"\n";
    let many: String = (0..17).map(|n| named(&format!("i{n}"), "enroll = \"manual\"")).collect();
    let require = "[key]\nrequire = \"tpm\"\n";
    for (text, line, key, says, hint) in [
        ("[[identity]]\nenroll = \"manual\"".into(), 1, "name", "it is missing", "Add a name, such as"),
        (
            "[[identity]]\nname = \"Wfm\"".into(),
            2,
            "name",
            "1 to 32 lower-case letters",
            "Choose a name such as",
        ),
        (
            "[[identity]]\nname = \"../x\"".into(),
            2,
            "name",
            "1 to 32 lower-case letters",
            "Choose a name such as",
        ),
        (identity(""), 1, "enroll", "it is missing", "Set enroll to \"factory-cert\", \"manual\""),
        (
            identity(manual) + &identity(manual),
            5,
            "name",
            "another [[identity]] of this file has the name \"wfm-client\"",
            "Give each identity a name of its own",
        ),
        (many, 49, "", "there are 17 identities; at most 16 are allowed", "Remove those"),
        (
            format!("{DEVICE}{}", named("b", "enroll = \"factory-cert\"")),
            4,
            "enroll",
            "a second identity has \"factory-cert\"",
            "Choose another way",
        ),
        (
            format!("[bootstrap]\ncert_file = \"a\"\nkey = \"file:b\"\n{}", identity(manual)),
            1,
            "bootstrap",
            "nothing would use this factory certificate",
            "Add [[identity]] with name = \"device\"",
        ),
        (
            named("a", manual) + &identity(&format!("enroll = \"wfm-binding\"\n{WFM}")),
            5,
            "enroll",
            "needs the identity of the device",
            "Add [[identity]] with name = \"device\"",
        ),
        (
            identity("enroll = \"factory-cert\"\nsvid_file = \"a\""),
            4,
            "svid_file",
            "only allowed with enroll = \"manual\" or \"installed\"",
            "Remove it, or correct enroll",
        ),
        (
            identity("enroll = \"manual\"\nkey_file = \"a\""),
            4,
            "key_file",
            "only allowed with enroll = \"installed\"",
            "Remove it, or correct enroll",
        ),
        (
            identity(&format!("enroll = \"manual\"\n{WFM}")),
            4,
            "wfm",
            "only allowed with enroll = \"wfm-binding\"",
            "Remove it, or correct enroll",
        ),
        (
            identity("enroll = \"installed\"\nsvid_file = \"a\""),
            1,
            "key_file",
            "it is missing",
            "Add key_file = \"PATH\"",
        ),
        (
            identity("enroll = \"installed\"\nkey_file = \"a\""),
            1,
            "svid_file",
            "it is missing",
            "Add svid_file = \"PATH\"",
        ),
        (
            identity("enroll = \"installed\"\nsvid_file = \"a\"\nkey_file = \"tpm:0x81000001\""),
            5,
            "key_file",
            "names neither a file nor a credential",
            "Write \"PATH\"",
        ),
        (
            identity("enroll = \"installed\"\nsvid_file = \"a\"\nkey_file = \"credential:../a\""),
            5,
            "key_file",
            "names neither a file nor a credential",
            "Write \"file:PATH\"",
        ),
        (identity("enroll = \"wfm-binding\""), 1, "wfm", "it is missing", "Add [identity.wfm]"),
        (
            identity("enroll = \"wfm-binding\"\n[identity.wfm]\nid = \"a\""),
            4,
            "wfm.url",
            "it is missing in this [identity.wfm]",
            "Add url",
        ),
        (
            identity("enroll = \"wfm-binding\"\n[identity.wfm]\nurl = \"https://a\""),
            4,
            "wfm.id",
            "it is missing in this [identity.wfm]",
            "Add id",
        ),
        (
            identity("enroll = \"wfm-binding\"\n[identity.wfm]\nid = \"a/b\"\nurl = \"https://a\""),
            5,
            "wfm.id",
            "not one segment of a SPIFFE ID",
            "such as \"wfm-1\"",
        ),
        (
            identity("enroll = \"wfm-binding\"\n[identity.wfm]\nid = \"..\"\nurl = \"https://a\""),
            5,
            "wfm.id",
            "not one segment of a SPIFFE ID",
            "such as \"wfm-1\"",
        ),
        (
            identity(&format!("enroll = \"wfm-binding\"\n{WFM}client_handle = \"a%41\"")),
            7,
            "wfm.client_handle",
            "not one segment of a SPIFFE ID",
            "such as",
        ),
        (
            identity("enroll = \"wfm-binding\"\n[identity.wfm]\nid = \"a\"\nurl = \"https://a/?b\""),
            6,
            "wfm.url",
            "it has a query or a fragment",
            "/api/v1/onboarding is appended",
        ),
        (
            identity("enroll = \"wfm-binding\"\n[identity.wfm]\nid = \"a\"\nurl = \"http://a/\""),
            6,
            "wfm.url",
            "https://",
            "",
        ),
        (
            identity("enroll = \"manual\"\nspiffe_id = \"spiffe://a/margo/device/1\""),
            4,
            "spiffe_id",
            "does not name a WFM Client, to which enroll = \"manual\" leads",
            "Write spiffe://<trust domain>/margo/wfm/",
        ),
        (
            identity("enroll = \"factory-cert\"\nspiffe_id = \"spiffe://a/margo/wfm/w/client/c\""),
            4,
            "spiffe_id",
            "does not name a device",
            "Write spiffe://<trust domain>/margo/device/",
        ),
        (
            identity("enroll = \"manual\"\nspiffe_id = \"spiffe://a/margo/wfm/w/client/..\""),
            4,
            "spiffe_id",
            "it is not a SPIFFE ID",
            "",
        ),
        (
            "[mis]\norigin = \"https://a\"\ntrust_domain = \"a\"\n".to_owned()
                + &identity("enroll = \"manual\"\nspiffe_id = \"spiffe://b/margo/wfm/w/client/c\""),
            7,
            "spiffe_id",
            "not in the trust domain \"a\"",
            "Correct the one",
        ),
        (
            "[mis]\nbundle_file = \"b\"\n".to_owned()
                + &identity("enroll = \"manual\"\nspiffe_id = \"spiffe://a/margo/wfm/w/client/c\"\n")
                + "[[identity]]\nname = \"b\"\nenroll = \"manual\"\nspiffe_id = \"spiffe://b/margo/wfm/w/client/c\"",
            10,
            "spiffe_id",
            "not in the trust domain \"a\", which spiffe_id of the identity \"wfm-client\" names",
            "Correct the one",
        ),
        (
            identity("enroll = \"installed\"\nsvid_file = \"a\"\nkey_file = \"b\"\nkey.provider = \"tpm\""),
            6,
            "key.provider",
            "an installed key is a software key",
            "set enroll = \"manual\"",
        ),
        (
            identity("enroll = \"installed\"\nsvid_file = \"a\"\nkey_file = \"b\"\n") + require,
            1,
            "key.provider",
            "rules out an installed key",
            "Set enroll = \"manual\"",
        ),
        (
            identity("enroll = \"manual\"\nkey.provider = \"software\"\n") + require,
            4,
            "key.provider",
            "rules out provider = \"software\"",
            "Set provider = \"tpm\" under [identity.key]",
        ),
        (
            identity("enroll = \"manual\"\nnotify = \"wfm-client\""),
            4,
            "notify",
            "not the name of a service or target",
            "such as \"wfm-client.service\"",
        ),
        (
            identity("enroll = \"manual\"\nnotify = \"../a.service\""),
            4,
            "notify",
            "not the name",
            "Write the whole",
        ),
        (
            identity("enroll = \"manual\"\nusers = [\"a b\"]"),
            4,
            "users",
            "the name of a user, or a number",
            "",
        ),
    ] {
        let error = Config::parse(&text, Path::new(FILE), None).unwrap_err();
        crate::hint::assert_apart(&error);
        let dot = if key.is_empty() { "" } else { "." };
        let at = match key {
            "bootstrap" => format!("{FILE}:{line}: bootstrap: "),
            key => format!("{FILE}:{line}: identity{dot}{key}: "),
        };
        let shown = error.to_string();
        assert!(shown.starts_with(&at) && shown.contains(says), "{text}: {at}{says}\n{shown}");
        let given = error.hint.unwrap_or_default();
        assert!(given.contains(hint) && given.is_empty() == hint.is_empty(), "{text}: {hint}\n{given}");
    }
    let unknown = parse(&identity("enroll = \"acme\"")).unwrap_err();
    assert!(unknown.starts_with(&format!("{FILE}:3: ")) && unknown.contains("unknown variant"), "{unknown}");
}

#[test]
fn drop_in_is_laid_over_the_identity_of_its_name() {
    let directory = directory(&[
        (
            "config.toml",
            &(DEVICE.to_owned() + &identity("enroll = \"manual\"\nusers = [\"a\"]\ngroup = \"g\"\n")),
        ),
        (
            "config.d/10.toml",
            &(named("wfm-client", "users = [\"b\"]\nkey.provider = \"software\"")
                + &named("gateway", "enroll = \"manual\"")),
        ),
        ("config.d/20.toml", &named("wfm-client", "svid_file = \"c.pem\"\nkey.rotate = false")),
    ]);
    let config = load(&directory).unwrap();
    assert_eq!(names(&config), ["device", "wfm-client", "gateway"], "the order is that of their appearance");
    let client = &config.identities[1];
    assert_eq!(*client.users, ["b".to_owned()], "a list is replaced as a whole");
    assert_eq!(client.group.as_deref(), Some("g"), "what a later file does not have stays");
    assert_eq!(client.key, IdentityKey { provider: ProviderKind::Software, rotate: Rotate::Never });
    assert_eq!(client.enroll, Enrollment::Manual { svid_file: Some(directory.path().join("c.pem")) });
}

#[test]
fn name_that_one_file_has_twice_is_refused_in_every_file() {
    let (client, twice) = (named("a", "enroll = \"manual\""), named("a", "group = \"g\"").repeat(2));
    for main in [&client[..], ""] {
        let directory = directory(&[("config.toml", main), ("config.d/10.toml", &twice)]);
        let error = load(&directory).unwrap_err();
        assert!(error.contains("config.d/10.toml:5: identity.name: another"), "{error}");
    }
    let beyond =
        directory(&[("config.toml", &client), ("config.d/10.toml", &named("b", "enrol = \"manual\""))]);
    assert!(load(&beyond).unwrap_err().contains("10.toml:3: unknown field `enrol`"));
}

fn salvage(files: &[(&str, &str)]) -> Config {
    let directory = directory(files);
    load(&directory).unwrap_err();
    Config::salvage(&directory.path().join("config.toml"), None).unwrap().config
}

#[test]
fn identities_are_salvaged_in_their_order() {
    let clients = named("first", "enroll = \"manual\"\nusers = [\"u\"]")
        + DEVICE
        + &named("third", "enroll = \"installed\"\nsvid_file = \"a\"\nkey_file = \"b\"");
    for bad in ["[log]\nlevle = 1\n", "[retry]\nbase = \"soon\"\n", &named("third", "notify = \"x\"")] {
        let config = salvage(&[("config.toml", &clients), ("config.d/a.toml", bad)]);
        assert_eq!(names(&config), ["first", "device", "third"], "{bad}");
        let ways: Vec<_> = config.identities.iter().map(|identity| identity.enroll.as_str()).collect();
        assert_eq!(ways, ["manual", "factory-cert", "installed"]);
        assert_eq!(*config.identities[0].users, ["u".to_owned()]);
    }
    // A way that cannot be read, and a name that is new, are no reason to lose the others.
    let bad = named("first", "enroll = \"est\"") + &named("new", "enroll = 5");
    let config = salvage(&[("config.toml", &clients), ("config.d/a.toml", &bad)]);
    assert_eq!(names(&config), ["first", "device", "third", "new"]);
    let alone = salvage(&[("config.toml", &named("wfm-client", "enroll = \"manual\"\nnotify = \"x\""))]);
    assert_eq!(names(&alone), ["wfm-client"], "there is no device, as the configuration says");
}

#[test]
fn default_identity_is_the_device_where_the_order_is_unknown() {
    let client = named("wfm-client", "enroll = \"manual\"");
    for main in
        ["nonsense\n", "[[identity]]\nname = 5\n", "[[identity\nname = \"device\"\n", "identity = 5\n"]
    {
        let config = salvage(&[("config.toml", main), ("config.d/a.toml", &client)]);
        assert_eq!(names(&config), ["device", "wfm-client"], "{main}");
    }
    let unreadable = salvage(&[("config.toml/x", ""), ("config.d/a.toml", &client)]);
    assert_eq!(names(&unreadable), ["device", "wfm-client"]);
    // What is named keeps its place.
    let config = salvage(&[("config.toml", &(client + DEVICE)), ("config.d/a.toml", "nonsense")]);
    assert_eq!(names(&config), ["wfm-client", "device"]);
}

#[test]
fn users_are_not_salvaged_from_a_partial_configuration() {
    let users = |files: &[(&str, &str)]| -> Vec<String> {
        salvage(files).identities.iter().flat_map(|identity| identity.users.to_vec()).collect()
    };
    let main = named("first", "enroll = \"manual\"")
        + &named("second", "enroll = \"manual\"\nusers = [\"b\"]")
        + "[workload_api]\nkey_users = [\"a\"]\n";
    assert_eq!(users(&[("config.toml", &main), ("config.d/a.toml", "[log]\nlevle = 1\n")]), ["a", "b"]);
    for bad in [
        "nonsense",
        "identity = 5",
        "[[identity]]\nusers = []",
        "[[identity]]\nname = \"Second\"\nusers = []",
        "[[identity]]\nname = \"second\"\nusers = \"nobody\"",
        "[[identity]]\nname = \"second\"\nusers = [5]",
    ] {
        assert!(users(&[("config.toml", &main), ("config.d/a.toml", bad)]).is_empty(), "{bad}");
    }
    assert!(users(&[("config.toml", &main), ("config.d/a.toml/x", "")]).is_empty());
    // A name twice in one file: whose key the second list is about is not known.
    let twice = named("second", "users = [\"x\"]");
    assert!(users(&[("config.toml", &(main.clone() + &twice))]).is_empty());
    let twice = named("other", "enroll = \"manual\"\nusers = [\"c\"]").repeat(2);
    assert!(users(&[("config.toml", &main), ("config.d/a.toml", &twice)]).is_empty());
    // The default identity's own list counts, and not the default of it.
    let own = named("first", "enroll = \"manual\"\nusers = []\nnotify = \"x\"")
        + "workload_api.key_users = [\"a\"]\n";
    assert!(users(&[("config.toml", &own.replace("workload_api.", "[workload_api]\n"))]).is_empty());
}

#[test]
fn required_protection_is_salvaged_whatever_contradicts_it() {
    let config = salvage(&[(
        "config.toml",
        "state_dir = \"/s\"\n[key]\nprovider = \"software\"\nrequire = \"tpm\"\n",
    )]);
    assert_eq!(
        (config.key.require, config.key.provider),
        (Some(crate::keys::KeyFloor::Tpm), ProviderKind::Software)
    );
    assert_eq!(config.state_dir, Path::new("/s"));
}

#[test]
fn directories_of_identities_have_no_other_use() {
    let error = |lines: &str| {
        let client = named("wfm-client", "enroll = \"manual\"");
        parse(&format!("state_dir = \"/s/state\"\n{client}[files]\n{lines}\n")).err()
    };
    for (lines, line, key) in [
        ("dir = \"/s/state\"", 6, "dir"),
        ("dir = \"/s/./x/../state/\"", 6, "dir"),
        ("dir = \"/s/state/private\"", 6, "dir"),
        ("dir = \"/s/state/private/a\"", 6, "dir"),
        ("software_key_dir = \"/s/state\"", 6, "software_key_dir"),
        ("software_key_dir = \"/s/state/private/identities\"", 6, "software_key_dir"),
        ("software_key_dir = \"/s/state/svid\"", 6, "software_key_dir"),
        ("dir = \"/run/keys\"\nsoftware_key_dir = \"/run/keys\"", 7, "software_key_dir"),
        ("dir = \"/run/a\"\nsoftware_key_dir = \"/run/a/wfm-client\"", 7, "software_key_dir"),
        ("dir = \"/run/a/wfm-client/b\"\nsoftware_key_dir = \"/run/a\"", 7, "software_key_dir"),
    ] {
        let error = error(lines).unwrap_or_else(|| panic!("accepted: {lines}"));
        assert!(error.starts_with(&format!("{FILE}:{line}: files.{key}: ")), "{lines}: {error}");
        assert!(error.contains("Name a directory that has no other use"), "{error}");
    }
    for lines in [
        "dir = \"/s\"",
        "dir = \"/s/state/published\"\nsoftware_key_dir = \"/s/state/keys\"",
        "dir = \"/run/a\"\nsoftware_key_dir = \"/run/a/keys\"",
        "dir = \"/s/state/privately\"",
    ] {
        assert_eq!(error(lines), None, "{lines}");
    }
    let client = named("state", "enroll = \"manual\"");
    let holds = parse(&format!("state_dir = \"/s/state\"\n{client}[files]\ndir = \"/s\"")).unwrap_err();
    assert!(holds.contains("files.dir") && holds.contains("/s/state"), "{holds}");
}
