//! Admin commands to the running agent: `POST /v1/retry`, and `renew`, `retire`, `csr`, `install` and
//! `enroll` below `/v1/identities/{name}/`.

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

use crate::hint::Reason;
use crate::platform::log::AUDIT;
use crate::publish::Snapshot;
use crate::server::command_queue::{AdminCommand, CommandError, Decision, SecretText};
use crate::server::context::ServerContext;
use crate::server::peer::{Peer, Role};
use crate::server::request_body;
use crate::server::response::{
    self, HttpResponse, JSON, method_not_allowed, problem, refusal, unknown_identity,
};
use miaf_client::api::{Accepted, IdentityName, MAX_CHAIN_PEM, ProblemCode};
use miaf_spiffe::svid::Chain;
use miaf_spiffe::{SpiffeId, TrustDomain, json};

/// Limit on the bytes of a body with a chain. A line end and a quote have two bytes in JSON.
const MAX_CHAIN_BODY: usize = 2 * MAX_CHAIN_PEM + 1024;

/// The path of an admin command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CommandPath {
    /// `/v1/retry`
    Retry,
    /// `/v1/identities/{name}/renew`
    Renew(IdentityName),
    /// `/v1/identities/{name}/retire`
    Retire(IdentityName),
    /// `/v1/identities/{name}/csr`
    Csr(IdentityName),
    /// `/v1/identities/{name}/install`
    Install(IdentityName),
    /// `/v1/identities/{name}/enroll`
    Enroll(IdentityName),
}

/// The body of an admin command, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CommandRequest {
    command: AdminCommand,
    /// For [`AdminCommand::Retire`]: the trust domain that the caller expects to leave.
    trust_domain: Option<TrustDomain>,
}

impl CommandPath {
    /// The command, as on the command line.
    fn command_name(&self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Renew(_) => "renew",
            Self::Retire(_) => "retire",
            Self::Csr(_) => "csr",
            Self::Install(_) => "install",
            Self::Enroll(_) => "enroll",
        }
    }

    /// Limit on the bytes of its body.
    fn max_body(&self) -> usize {
        match self {
            Self::Install(_) => MAX_CHAIN_BODY,
            _ => request_body::MAX_BODY,
        }
    }

    /// The identity that the path names.
    fn identity(&self) -> Option<&IdentityName> {
        match self {
            Self::Retry => None,
            Self::Renew(name)
            | Self::Retire(name)
            | Self::Csr(name)
            | Self::Install(name)
            | Self::Enroll(name) => Some(name),
        }
    }

    /// Parses a body. `default_identity` is the one that a command is about where it names none.
    ///
    /// # Errors
    /// What is wrong with the body, and what to send.
    fn read(self, body: &[u8], default_identity: &IdentityName) -> Result<CommandRequest, Reason> {
        let request = |command| CommandRequest { command, trust_domain: None };
        match self {
            Self::Retry if body.is_empty() => Ok(request(AdminCommand::Retry { new_key: None })),
            Self::Retry => {
                let must =
                    "Send no body, or {\"newKey\": true}, or {\"newKey\": true, \"identity\": \"device\"}";
                let RetryBody { new_key, identity } = object(body, must)?;
                if identity.is_some() && !new_key {
                    let what = "the body names an identity, and a retry is for all of them";
                    return Err(Reason::from(what).with_hint_text(must));
                }
                let identity = identity.unwrap_or_else(|| default_identity.clone());
                Ok(request(AdminCommand::Retry { new_key: new_key.then_some(identity) }))
            }
            Self::Renew(name) if body.is_empty() => Ok(request(AdminCommand::Renew(name))),
            Self::Renew(name) => {
                object(body, "Send no body").map(|EmptyBody {}| request(AdminCommand::Renew(name)))
            }
            Self::Retire(name) => object(
                body,
                "Name the trust domain that is to be left: {\"trustDomain\": \"factory.example\"}",
            )
            .map(|RetireBody { trust_domain }| CommandRequest {
                command: AdminCommand::Retire(name),
                trust_domain: Some(trust_domain),
            }),
            Self::Csr(identity) => {
                let must = "Send no body, or {\"spiffeId\": \"spiffe://…\"}";
                let CsrBody { spiffe_id } =
                    if body.is_empty() { CsrBody::default() } else { object(body, must)? };
                Ok(request(AdminCommand::Csr { identity, spiffe_id }))
            }
            Self::Enroll(identity) => {
                // What is wrong with the JSON is not quoted: the token is in it.
                let EnrollBody { token } = json::read(body).map_err(|_| {
                    Reason::from("the body does not fit the admin command")
                        .with_hint_text("Send {\"token\": \"username:secret\"}, and nothing else")
                })?;
                Ok(request(AdminCommand::Enroll { identity, token: SecretText::new(token) }))
            }
            Self::Install(identity) => {
                let must = "Send {\"certificateChainPem\": \"…\"}: one string of PEM, leaf first, then its intermediates";
                let InstallBody { certificate_chain_pem } = object(body, must)?;
                if certificate_chain_pem.len() > MAX_CHAIN_PEM {
                    let what = format!("the certificate chain has more than {MAX_CHAIN_PEM} bytes");
                    let hint = "Send nothing but the leaf and its intermediates";
                    return Err(Reason::from(what).with_hint_text(hint));
                }
                let chain = Chain::from_pem_text(certificate_chain_pem.as_bytes()).map_err(|e| {
                    Reason::from(format!("the certificate chain cannot be read: {e}")).with_hint_text(must)
                })?;
                Ok(request(AdminCommand::Install { identity, chain }))
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RetryBody {
    #[serde(default)]
    new_key: bool,
    #[serde(default, deserialize_with = "not_null")]
    identity: Option<IdentityName>,
}

fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EmptyBody {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RetireBody {
    trust_domain: TrustDomain,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CsrBody {
    #[serde(default, deserialize_with = "not_null")]
    spiffe_id: Option<SpiffeId>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct InstallBody {
    certificate_chain_pem: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnrollBody {
    token: String,
}

/// Body of a response with a certification request.
#[derive(Serialize)]
struct CsrResponse<'a> {
    identity: Option<&'a IdentityName>,
    csr: &'a str,
}

fn object<T: DeserializeOwned>(body: &[u8], must: &str) -> Result<T, Reason> {
    json::read(body).map_err(|e| {
        Reason::from(format!("the body does not fit the admin command: {e}")).with_hint_text(must)
    })
}

/// Sends a command to the event loop. `Err` is the response to one that is rejected.
pub(super) async fn respond(
    path: CommandPath,
    request: &Request<()>,
    body: &mut Incoming,
    peer: Peer,
    context: &ServerContext,
) -> Result<HttpResponse, HttpResponse> {
    if request.method() != Method::POST {
        return Err(method_not_allowed("POST", "this path takes an admin command", "Use POST"));
    }
    if peer.role != Role::Admin {
        let hint = "Use the administration socket, as root: admin.sock in the directory of this one, where nothing \
                    else is configured";
        let detail = "this socket accepts no admin commands";
        return Err(problem(StatusCode::FORBIDDEN, ProblemCode::Forbidden, detail, Some(hint)));
    }
    let Peer { uid, pid, .. } = peer;
    let (audit, of_path) = (path.command_name(), path.identity().cloned());
    let identity = of_path.as_ref().map(IdentityName::as_str);
    let body = request_body::read_up_to(path.max_body(), body).await.inspect_err(|response| {
        let status = response.status().as_u16();
        tracing::info!(
            target: AUDIT, audit, identity, uid, pid, status, reason = "incomplete request",
            "admin command rejected"
        );
    })?;
    let snapshot = context.snapshots.borrow().clone();
    let body = Zeroizing::new(body);
    let parsed = path.read(&body, &snapshot.default_identity.name);
    let CommandRequest { command, trust_domain } = parsed.map_err(|reason| {
        tracing::info!(
            target: AUDIT, audit, identity, uid, pid, %reason, hint = reason.hint,
            "admin command rejected: invalid request"
        );
        refusal(StatusCode::BAD_REQUEST, ProblemCode::InvalidRequest, &reason)
    })?;
    let (audit, named) = (command.as_str(), command.identity().cloned());
    let identity = named.as_ref().map(IdentityName::as_str);
    tracing::info!(target: AUDIT, audit, identity, uid, pid, "admin command received");
    context.counters.command();
    let decision = match check(named.as_ref(), trust_domain.as_ref(), &snapshot) {
        Ok(()) => context.commands.send(command).await.map_err(|e| match e {
            CommandError::NotApplicable(reason) => (StatusCode::CONFLICT, ProblemCode::NotApplicable, reason),
            CommandError::Busy => {
                let what =
                    "the agent cannot accept the command now: others wait already, or it is shutting down";
                let reason = Reason::from(what).with_hint_text("Try again later");
                (StatusCode::SERVICE_UNAVAILABLE, ProblemCode::Busy, reason)
            }
        }),
        Err(rejection) => Err(rejection),
    };
    match decision {
        Ok(Decision::Csr(csr)) => {
            let response = CsrResponse { identity: named.as_ref(), csr: &csr };
            Ok(response::json(StatusCode::OK, JSON, &response))
        }
        Ok(Decision::Accepted(detail)) => {
            Ok(response::json(StatusCode::ACCEPTED, JSON, &Accepted { accepted: true, detail }))
        }
        Err((status, code, reason)) => {
            tracing::info!(
                target: AUDIT, audit, identity, uid, pid, %reason, hint = reason.hint, "admin command rejected"
            );
            Err(refusal(status, code, &reason))
        }
    }
}

/// Checks that the identity exists and, if it has an SVID, is in the trust domain that is to be
/// left. `Err` is the status, the code and the reason of the response.
fn check(
    identity: Option<&IdentityName>,
    expected: Option<&TrustDomain>,
    snapshot: &Snapshot,
) -> Result<(), (StatusCode, ProblemCode, Reason)> {
    let Some(name) = identity else { return Ok(()) };
    let unknown = || (StatusCode::NOT_FOUND, ProblemCode::UnknownIdentity, unknown_identity(name));
    let identity = snapshot.identity(name).ok_or_else(unknown)?;
    let current = identity.current.as_ref().map(|current| current.svid.spiffe_id().trust_domain());
    match (current, expected) {
        (Some(current), Some(expected)) if current != expected => {
            let reason = Reason::from(format!(
                "the identity \"{name}\" is in the trust domain \"{current}\", not in \"{expected}\": it stays"
            ));
            let reason = reason.with_hint_text(format!("Name \"{current}\" to retire it from there"));
            Err((StatusCode::CONFLICT, ProblemCode::NotApplicable, reason))
        }
        _ => Ok(()), // without one the event loop says what to do
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::assert_apart;

    /// One limit for every caller, whatever its encoder of JSON writes.
    #[test]
    fn chain_is_limited_by_its_bytes_of_pem() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let pem = rcgen::CertificateParams::default().self_signed(&pair).unwrap().pem();
        let install = || CommandPath::Install(IdentityName::DEVICE);
        let body = |length: usize| {
            let text = format!("{pem}{}", "\n".repeat(length - pem.len()));
            serde_json::json!({ "certificateChainPem": text }).to_string().into_bytes()
        };
        let longest = body(MAX_CHAIN_PEM);
        assert!(longest.len() > MAX_CHAIN_PEM && longest.len() <= install().max_body());
        install().read(&longest, &IdentityName::DEVICE).unwrap();
        let longer = body(MAX_CHAIN_PEM + 1);
        let refused = install().read(&longer, &IdentityName::DEVICE).unwrap_err();
        assert!(refused.what.contains("more than 65536 bytes"), "{refused}");
        assert_apart(&refused);
    }

    #[test]
    fn command_body_is_validated() {
        let device = || IdentityName::DEVICE;
        let command = |path: CommandPath, body: &str| {
            path.read(body.as_bytes(), &device()).map(|request| request.command)
        };
        let (retry, renew, retire) =
            (|| CommandPath::Retry, || CommandPath::Renew(device()), || CommandPath::Retire(device()));
        let other = IdentityName::parse("wfm").unwrap();
        for (body, new_key) in [
            ("", None),
            ("{}", None),
            ("{\"newKey\":false}", None),
            ("{\"newKey\": true}", Some(device())),
            ("{\"newKey\": true, \"identity\": \"wfm\"}", Some(other)),
        ] {
            assert_eq!(command(retry(), body), Ok(AdminCommand::Retry { new_key }), "{body:?}");
        }
        for body in ["", "{}", "\u{feff}{}"] {
            // A byte order mark is skipped, as everywhere (RFC 8259 section 8.1).
            assert_eq!(command(renew(), body), Ok(AdminCommand::Renew(device())));
        }
        let request = retire().read(b"{\"trustDomain\":\"factory.example\"}", &device()).unwrap();
        assert_eq!(request.command, AdminCommand::Retire(device()));
        assert_eq!(request.trust_domain, Some(TrustDomain::parse("factory.example").unwrap()));
        let of_retry = [
            "null",
            "[true]",
            "true",
            "{\"newKey\":1}",
            "{\"newKey\":null}",
            "{\"new_key\":true}",
            "{\"identity\":\"wfm\"}",
            "{\"newKey\":false,\"identity\":\"wfm\"}",
            "{\"newKey\":true,\"identity\":null}",
            "{\"newKey\":true,\"identity\":\"../x\"}",
            " ",
        ];
        let of_retire = ["", "{}", "[\"a\"]", "{\"trustDomain\":5}", "{\"trustDomain\":\"No Domain\"}"];
        for (path, bodies, allowed) in [
            (retry(), &of_retry[..], "Send no body, or {\"newKey\": true}"),
            (renew(), &["[]", "{\"newKey\":true}", "x"], "Send no body"),
            (retire(), &of_retire, "Name the trust domain that is to be left"),
        ] {
            for body in bodies {
                let reason = command(path.clone(), body).unwrap_err();
                assert!(reason.hint.as_ref().unwrap().starts_with(allowed), "{body:?}: {reason}");
                assert_apart(&reason);
            }
        }
        let csr = || CommandPath::Csr(device());
        for (body, spiffe_id) in [
            ("", None),
            ("{}", None),
            (
                "{\"spiffeId\":\"spiffe://a/margo/wfm/w/client/c\"}",
                Some(SpiffeId::parse("spiffe://a/margo/wfm/w/client/c").unwrap()),
            ),
        ] {
            assert_eq!(
                command(csr(), body),
                Ok(AdminCommand::Csr { identity: device(), spiffe_id }),
                "{body}"
            );
        }
        let install = || CommandPath::Install(device());
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
        let chain = Chain::from_pem_text(pem.as_bytes()).unwrap();
        let body = serde_json::json!({ "certificateChainPem": pem }).to_string();
        let installed = command(install(), &body);
        assert_eq!(installed, Ok(AdminCommand::Install { identity: device(), chain }));
        let of_csr = [
            "null",
            "[]",
            "{\"spiffeId\":null}",
            "{\"spiffeId\":5}",
            "{\"spiffeId\":\"\"}",
            "{\"spiffeId\":\"spiffe://a/margo/wfm/w/client/..\"}",
            "{\"spiffe_id\":\"spiffe://a/b\"}",
        ];
        let of_install = [
            "",
            "{}",
            "{\"certificateChainPem\":null}",
            "{\"certificateChainPem\":[]}",
            "{\"certificateChainPem\":\"\"}",
            "{\"certificateChainPem\":\"MIIB\"}",
            "{\"certificateChainPem\":\"-----BEGIN CERTIFICATE-----\\nMIIB\"}",
            "{\"certificateChainPem\":\"\",\"certificateChainPem\":\"\"}",
        ];
        for (path, bodies, allowed) in [
            (csr(), &of_csr[..], "Send no body, or {\"spiffeId\""),
            (install(), &of_install, "Send {\"certificateChainPem\""),
        ] {
            for body in bodies {
                let reason = command(path.clone(), body).unwrap_err();
                assert!(reason.hint.as_ref().unwrap().starts_with(allowed), "{body:?}: {reason}");
                assert_apart(&reason);
            }
        }
        let twice = command(retry(), "{\"newKey\":true,\"newKey\":true}").unwrap_err();
        assert!(twice.what.contains("duplicate"), "{twice}");
    }
}
