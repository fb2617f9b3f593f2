//! What is read of a discovery document, and what is refused.

use super::lists::MAX_CRL_URIS;
use super::*;
use serde_json::{Value, json};

fn document() -> Value {
    json!({
        "trustDomain": "northstar-ida.com",
        "trustBundleUri": "https://mis.northstar-ida.com/.well-known/spiffe/bundle.json",
        "margoIdentityServiceBaseUri": "https://mis.northstar-ida.com",
        "supportedBootstrapMethods": [FACTORY_CERT_MTLS],
        "svidProfilesSupported": [X509_SVID_V1],
    })
}

fn read(document: &Value) -> Result<Discovery, DiscoveryError> {
    Discovery::from_json(&document.to_string())
}

fn rules_out(document: &Discovery, method: BootstrapMethod) -> Option<Report> {
    document.rules_out_enrollment(method, "device", "do it by hand")
}

#[test]
fn discovery_example_of_the_sup_leads_to_its_addresses() {
    let mut document = document();
    document["somethingNew"] = json!({ "nested": true });
    let discovery = read(&document).unwrap();
    assert_eq!(rules_out(&discovery, BootstrapMethod::FactoryCert), None);
    let v0 = discovery.miaf_v0().unwrap();
    assert_eq!(v0.identities_uri().as_str(), "https://mis.northstar-ida.com/api/v1/identities");
    let id = SpiffeId::parse("spiffe://northstar-ida.com/margo/device/123e4567-e89b-12d3-a456-426614174000");
    assert_eq!(
        v0.renewal_uri(&id.unwrap()).as_str(),
        "https://mis.northstar-ida.com/api/v1/identities/c3BpZmZlOi8vbm9ydGhzdGFyLWlkYS5jb20vbWFyZ28vZGV2aWNlLzEyM2U0NTY3LWU4OWItMTJkMy1hNDU2LTQyNjYxNDE3NDAwMA/renewal"
    );
}

#[test]
fn base_uri_with_a_path_keeps_it() {
    let mut document = document();
    for base in ["https://gw.example:8443/mis", "https://gw.example:8443/mis/"] {
        document["margoIdentityServiceBaseUri"] = base.into();
        let uri = read(&document).unwrap().miaf_v0().unwrap().identities_uri();
        assert_eq!(uri.as_str(), "https://gw.example:8443/mis/api/v1/identities");
    }
}

#[test]
fn origin_is_scheme_host_and_port() {
    let url = Url::parse("https://mis.northstar-ida.com/.well-known/margo").unwrap();
    let (base, bundle) = ("margoIdentityServiceBaseUri", "trustBundleUri");
    let at = |base_uri: &str, bundle_uri: &str| {
        let mut document = document();
        (document[base], document[bundle]) = (base_uri.into(), bundle_uri.into());
        read(&document).unwrap().check_origin(&url)
    };
    let (here, same) = ("https://mis.northstar-ida.com/api", "https://MIS.northstar-ida.com:443/b?x=1");
    at(here, same).unwrap();
    for other in ["https://northstar-ida.com/b", "https://mis.northstar-ida.com:8443/b", "https://192.0.2.1/"]
    {
        for (document, member) in [(at(other, here), base), (at(here, other), bundle)] {
            let why = document.unwrap_err().to_string();
            let origin = Url::parse(other).unwrap().origin().ascii_serialization();
            for part in [member, origin.as_str(), "https://mis.northstar-ida.com"] {
                assert!(why.contains(part), "{why}");
            }
        }
    }
}

#[test]
fn est_server_of_the_document_is_opaque() {
    let mut document = document();
    assert_eq!(read(&document).unwrap().est(), None);
    for (uri, want) in [
        ("https://est.example/.well-known/est/a", "https://est.example/.well-known/est/a"),
        ("https://est.example:8443/x/", "https://est.example:8443/x"),
        ("https://est.margo.org", "https://est.margo.org/"),
    ] {
        document["estBaseUri"] = uri.into();
        assert_eq!(read(&document).unwrap().est().unwrap().as_url().as_str(), want);
    }
    for uri in [
        "http://e.example/est",
        "/est",
        "",
        "https://u@e.example/",
        "https://e.example/?a",
        "https://e.example/#",
    ] {
        document["estBaseUri"] = uri.into();
        let refused = read(&document).unwrap_err();
        assert!(matches!(refused, DiscoveryError::EstUri { .. }), "{uri}: {refused}");
        crate::hint::assert_apart(&refused);
    }
    for mistyped in [json!(null), json!(5), json!([]), json!({}), json!(["https://est.example"])] {
        document["estBaseUri"] = mistyped;
        assert!(matches!(read(&document), Err(DiscoveryError::Member { .. })));
    }
}

#[test]
fn crl_uris_are_read_one_by_one() {
    let mut document = document();
    let crls = |document: &Value| {
        let document = read(document).unwrap();
        let urls: Vec<_> = document.crl_uris().iter().map(|url| url.as_str().to_owned()).collect();
        (urls, document.unusable_crl_uris().map(ToString::to_string))
    };
    let none = (Vec::<String>::new(), None);
    assert_eq!(crls(&document), none);
    document["crlUris"] = json!([]);
    assert_eq!(crls(&document), none);
    document["crlUris"] = json!([
        "http://c.example/a",
        "https://c.example/b",
        "http://c.example/a",
        "HTTP://C.example:80/a",
        "ldap://c/x",
        "/a",
        "https://u:p@c.example/",
        ""
    ]);
    let (urls, unusable) = crls(&document);
    assert_eq!(urls, ["http://c.example/a", "https://c.example/b"]);
    let unusable = unusable.unwrap();
    for part in ["\"ldap://c/x\"", "\"/a\"", "http or https"] {
        assert!(unusable.contains(part), "{unusable}");
    }
    let many: Vec<_> = (0..MAX_CRL_URIS + 3).map(|n| format!("http://c.example/{n}")).collect();
    document["crlUris"] = json!(many);
    let (urls, unusable) = crls(&document);
    assert_eq!((urls.len(), urls[0].as_str()), (MAX_CRL_URIS, "http://c.example/0"));
    assert!(unusable.unwrap().starts_with("3 more than the 64"));
    for mistyped in [json!(null), json!("http://c.example/"), json!({}), json!([5]), json!([null])] {
        document["crlUris"] = mistyped;
        assert!(matches!(read(&document), Err(DiscoveryError::Member { member: "crlUris", .. })));
    }
}

#[test]
fn est_server_elsewhere_is_refused_and_the_document_stays() {
    let url = Url::parse("https://mis.northstar-ida.com/.well-known/margo").unwrap();
    let mut document = document();
    document["estBaseUri"] = "https://mis.northstar-ida.com:443/est".into();
    let body = document.to_string();
    let mut here = read(&document).unwrap();
    assert!(!here.est_is_elsewhere(&url) && here.refuse_est_elsewhere(&url, &body).is_none());
    assert!(here.est().is_some() && here.refused_est().is_none());
    for elsewhere in
        ["https://est.northstar-ida.com/est", "https://mis.northstar-ida.com:8443/est", "https://192.0.2.1/"]
    {
        document["estBaseUri"] = elsewhere.into();
        let mut read = read(&document).unwrap();
        read.check_origin(&url).unwrap();
        assert!(read.est_is_elsewhere(&url));
        let stored = read.refuse_est_elsewhere(&url, &document.to_string()).unwrap();
        assert_eq!(read.est(), None);
        let why = read.refused_est().unwrap();
        crate::hint::assert_apart(why);
        assert!(why.to_string().starts_with("its estBaseUri is at https://"), "{why}");
        // The rest is as it was, also after a restart.
        let again = Discovery::from_json(&stored).unwrap();
        assert_eq!((again.est(), again.miaf_v0()), (None, read.miaf_v0()));
        assert_eq!(again.bundle(), read.bundle());
    }
}

#[test]
fn required_members_are_required_and_every_one_is_typed() {
    for member in document().as_object().unwrap().keys() {
        let is_of_v0 = !["trustDomain", "trustBundleUri"].contains(&member.as_str());
        let mut missing = document();
        missing.as_object_mut().unwrap().remove(member);
        match read(&missing) {
            Ok(document) if is_of_v0 => {
                assert_eq!(document.miaf_v0().unwrap_err().0, member);
            }
            refused => {
                assert!(!is_of_v0 && matches!(refused, Err(DiscoveryError::Json(_))), "{member} missing");
            }
        }
        for mistyped_value in [json!(5), json!(null), json!({})] {
            let mut mistyped = document();
            mistyped[member] = mistyped_value;
            let refused = read(&mistyped);
            assert!(
                matches!(refused, Err(DiscoveryError::Json(_) | DiscoveryError::Member { .. })),
                "{member} mistyped: {refused:?}"
            );
        }
    }
    let in_order: Vec<Value> = ["trustDomain", "trustBundleUri", "margoIdentityServiceBaseUri"]
        .into_iter()
        .chain(["supportedBootstrapMethods", "svidProfilesSupported"])
        .map(|member| document()[member].clone())
        .collect();
    for array in [json!([]), json!(in_order)] {
        assert!(matches!(read(&array), Err(DiscoveryError::Json(_))), "{array}");
    }
}

#[test]
fn released_document_rules_out_what_needs_the_network() {
    let released = json!({
        "trustBundleUri": "https://mis.margo.org:18443/.well-known/spiffe/bundle.json",
        "trustDomain": "margo.org",
        "estBaseUri": "https://est.margo.org",
    });
    let document = read(&released).unwrap();
    assert_eq!(document.trust_domain().unwrap().as_str(), "margo.org");
    for method in BootstrapMethod::ALL {
        let report = document.rules_out_enrollment(method, "line-7", "do it by hand").unwrap();
        let detail = report.detail.as_deref().unwrap();
        for part in ["margoIdentityServiceBaseUri", "\"line-7\"", "\"margo.org\""] {
            assert!(detail.contains(part), "{detail}");
        }
        assert_eq!(report.hint(), Some("do it by hand"));
        assert_eq!(document.rules_out_renewal("line-7", "do it by hand"), Some(report));
    }
    let domain = TrustDomain::parse("margo.org").unwrap();
    for (domain, source) in [
        (Some(domain), "the configuration, which names the trust bundle of \"margo.org\" itself"),
        (None, "the configuration, which names the trust bundle itself"),
    ] {
        let configured = Discovery::of_bundle(domain.clone(), BundleLocation::File("/b.json".into()));
        assert_eq!(configured.trust_domain(), domain.as_ref());
        let report = configured.rules_out_renewal("line-7", "do it by hand").unwrap();
        assert!(report.detail.unwrap().contains(source));
    }
}

#[test]
fn each_method_is_ruled_out_by_itself() {
    let mut document = document();
    for (listed, factory, binding) in [
        (json!([FACTORY_CERT_MTLS]), true, false),
        (json!([WFM_CLIENT_BINDING, "urn:another"]), false, true),
        (json!([WFM_CLIENT_BINDING, FACTORY_CERT_MTLS, FACTORY_CERT_MTLS]), true, true),
        (json!([]), false, false),
    ] {
        document["supportedBootstrapMethods"] = listed;
        let document = read(&document).unwrap();
        for (method, allowed) in
            [(BootstrapMethod::FactoryCert, factory), (BootstrapMethod::WfmBinding, binding)]
        {
            let report = rules_out(&document, method);
            assert_eq!(report.is_none(), allowed, "{report:?}");
            let says = report.is_none_or(|report| report.detail.unwrap().contains(method.urn()));
            assert!(says, "{method:?}");
        }
        assert_eq!(document.rules_out_renewal("device", ""), None);
    }
}

#[test]
fn bundle_is_taken_from_the_documents_origin_or_an_allowed_one() {
    let url = Url::parse("https://mis.northstar-ida.com/.well-known/margo").unwrap();
    let allowed = ["https://bundles.example/", "https://other.example:8443/"];
    let allowed = allowed.map(|origin| Url::parse(origin).unwrap());
    for (bundle, by_default, by_list) in [
        ("https://mis.northstar-ida.com:443/b", true, false),
        ("https://bundles.example/any/path?x=1", false, true),
        ("https://BUNDLES.example/b", false, true),
        ("https://other.example:8443/b", false, true),
        ("https://other.example/b", false, false),
        ("https://bundles.example.evil/b", false, false),
        ("https://northstar-ida.com/b", false, false),
    ] {
        let mut document = document();
        document["trustBundleUri"] = bundle.into();
        let document = read(&document).unwrap();
        assert_eq!(document.check_bundle_origin(&url, &[]).is_ok(), by_default, "{bundle}");
        let listed = document.check_bundle_origin(&url, &allowed);
        assert_eq!(listed.is_ok(), by_list, "{bundle}");
        let Err(refused) = listed else { continue };
        crate::hint::assert_apart(&refused);
        let origin = Url::parse(bundle).unwrap().origin().ascii_serialization();
        assert!(refused.to_string().contains(&origin), "{refused}");
        assert!(refused.hint().unwrap().contains("mis.bundle_origins"), "the key");
    }
}

#[test]
fn lists_are_read_completely_and_shown_shortened() {
    let mut document = document();
    let mut many = vec![json!("\u{1b}]0;x"); 10_000];
    document["supportedBootstrapMethods"] = json!(many.clone());
    let refused = read(&document).unwrap();
    assert!(rules_out(&refused, BootstrapMethod::FactoryCert).is_some());
    let shown = &refused.miaf_v0().unwrap().methods.shown;
    assert!(shown.chars().count() <= MAX_LISTED + 1 && !shown.contains('\u{1b}'));
    many.push(json!(FACTORY_CERT_MTLS));
    document["supportedBootstrapMethods"] = json!(many.clone());
    assert_eq!(rules_out(&read(&document).unwrap(), BootstrapMethod::FactoryCert), None);
    for bad in [json!([5]), json!([null]), json!({}), json!("text"), json!(null)] {
        document["supportedBootstrapMethods"] = bad.clone();
        let why = read(&document).unwrap_err().to_string();
        assert!(why.contains("not a Margo discovery document: its supportedBootstrapMethods"), "{why}");
    }
}

#[test]
fn uri_over_the_limit_is_refused() {
    for (length, is_good) in [(MAX_URI, true), (MAX_URI + 1, false)] {
        let mut document = document();
        let uri = format!("{:a<length$}", "https://mis.example/");
        document["trustBundleUri"] = uri.into();
        assert_eq!(read(&document).is_ok(), is_good, "{length}");
    }
}

#[test]
fn only_absolute_https_urls_and_valid_names_are_accepted() {
    for member in ["trustBundleUri", "margoIdentityServiceBaseUri"] {
        for bad in ["http://mis.example/", "/relative", "https://", "https://user@mis.example/", "ftp://a/"] {
            let mut document = document();
            document[member] = bad.into();
            assert!(matches!(read(&document), Err(DiscoveryError::Uri { .. })), "{member} {bad}");
        }
    }
    for bad in ["", "Factory.example", "spiffe://factory.example", "a b"] {
        let mut document = document();
        document["trustDomain"] = bad.into();
        assert!(matches!(read(&document), Err(DiscoveryError::TrustDomain(_))), "{bad}");
    }
}
