//! Admin commands to the running agent: `POST /v1/retry`, `/v1/identities/{name}/renew` and
//! `/v1/identities/{name}/retire`.

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::platform::log::AUDIT;
use crate::publish::Snapshot;
use crate::server::command_queue::{AdminCommand, CommandError};
use crate::server::context::ServerContext;
use crate::server::peer::{Peer, Role};
use crate::server::request_body;
use crate::server::response::{self, HttpResponse, JSON, method_not_allowed, problem, unknown_identity};
use miaf_client::api::{Accepted, IdentityName};
use miaf_spiffe::TrustDomain;
use miaf_spiffe::json;

/// The path of an admin command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CommandPath {
    /// `/v1/retry`
    Retry,
    /// `/v1/identities/{name}/renew`
    Renew(IdentityName),
    /// `/v1/identities/{name}/retire`
    Retire(IdentityName),
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
        }
    }

    /// Parses a body. `default_identity` is the one that a command is about where it names none.
    ///
    /// # Errors
    /// A sentence that says what is allowed.
    fn read(self, body: &[u8], default_identity: &IdentityName) -> Result<CommandRequest, String> {
        let request = |command| CommandRequest { command, trust_domain: None };
        match self {
            Self::Retry if body.is_empty() => Ok(request(AdminCommand::Retry { new_key: None })),
            Self::Retry => {
                let must = "be empty, or {\"newKey\": true}, or {\"newKey\": true, \"identity\": \"device\"}";
                let RetryBody { new_key, identity } = object(body, must)?;
                if identity.is_some() && !new_key {
                    return Err(format!(
                        "The body must {must}. This one names an identity, and a retry is for all of them."
                    ));
                }
                let identity = identity.unwrap_or_else(|| default_identity.clone());
                Ok(request(AdminCommand::Retry { new_key: new_key.then_some(identity) }))
            }
            Self::Renew(name) if body.is_empty() => Ok(request(AdminCommand::Renew(name))),
            Self::Renew(name) => {
                object(body, "be empty").map(|EmptyBody {}| request(AdminCommand::Renew(name)))
            }
            Self::Retire(name) => object(
                body,
                "name the trust domain that is to be left: {\"trustDomain\": \"factory.example\"}",
            )
            .map(|RetireBody { trust_domain }| CommandRequest {
                command: AdminCommand::Retire(name),
                trust_domain: Some(trust_domain),
            }),
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

fn not_null<'de, D: Deserializer<'de>>(identity: D) -> Result<Option<IdentityName>, D::Error> {
    IdentityName::deserialize(identity).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EmptyBody {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RetireBody {
    trust_domain: TrustDomain,
}

fn object<T: DeserializeOwned>(body: &[u8], must: &str) -> Result<T, String> {
    json::read(body).map_err(|e| format!("The body must {must}. This one: {e}."))
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
        return Err(method_not_allowed("POST", "This path takes an admin command: use POST."));
    }
    if peer.role != Role::Admin {
        let detail = "Admin commands are accepted on the administration socket only (admin.sock in the directory of \
                      this one, where nothing else is configured), which root may use.";
        return Err(problem(StatusCode::FORBIDDEN, detail));
    }
    let Peer { uid, pid, .. } = peer;
    let audit = path.command_name();
    let body = request_body::read(body).await.inspect_err(|response| {
        let status = response.status().as_u16();
        tracing::info!(
            target: AUDIT, audit, uid, pid, status, reason = "incomplete request", "admin command rejected"
        );
    })?;
    let snapshot = context.snapshots.borrow().clone();
    let parsed = path.read(&body, &snapshot.default_identity.name);
    let CommandRequest { command, trust_domain } = parsed.map_err(|reason| {
        tracing::info!(target: AUDIT, audit, uid, pid, reason, "admin command rejected: invalid request");
        problem(StatusCode::BAD_REQUEST, &reason)
    })?;
    let (audit, named) = (command.as_str(), command.identity().cloned());
    let identity = named.as_ref().map(IdentityName::as_str);
    tracing::info!(target: AUDIT, audit, identity, uid, pid, "admin command received");
    context.counters.command();
    let decision = match check(named.as_ref(), trust_domain.as_ref(), &snapshot) {
        Ok(()) => context.commands.send(command).await.map_err(|e| match e {
            CommandError::NotApplicable(reason) => (StatusCode::CONFLICT, reason),
            CommandError::Busy => {
                let reason =
                    "The agent cannot accept the command now: others wait already, or it is shutting down. Try again.";
                (StatusCode::SERVICE_UNAVAILABLE, reason.to_owned())
            }
        }),
        Err(rejection) => Err(rejection),
    };
    match decision {
        Ok(detail) => Ok(response::json(StatusCode::ACCEPTED, JSON, &Accepted { accepted: true, detail })),
        Err((status, reason)) => {
            tracing::info!(target: AUDIT, audit, identity, uid, pid, reason, "admin command rejected");
            Err(problem(status, &reason))
        }
    }
}

/// Checks that the identity exists and, if it has an SVID, is in the trust domain that is to be
/// left.
fn check(
    identity: Option<&IdentityName>,
    expected: Option<&TrustDomain>,
    snapshot: &Snapshot,
) -> Result<(), (StatusCode, String)> {
    let Some(name) = identity else { return Ok(()) };
    let identity = snapshot.identity(name).ok_or_else(|| (StatusCode::NOT_FOUND, unknown_identity(name)))?;
    let current = identity.current.as_ref().map(|current| current.svid.spiffe_id().trust_domain());
    match (current, expected) {
        (Some(current), Some(expected)) if current != expected => Err((
            StatusCode::CONFLICT,
            format!(
                "The identity \"{name}\" is in the trust domain \"{current}\", not in \"{expected}\": it stays."
            ),
        )),
        _ => Ok(()), // without one the event loop says what to do
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (retry(), &of_retry[..], "be empty, or {\"newKey\": true}"),
            (renew(), &["[]", "{\"newKey\":true}", "x"], "be empty"),
            (retire(), &of_retire, "name the trust domain that is to be left"),
        ] {
            for body in bodies {
                let reason = command(path.clone(), body).unwrap_err();
                assert!(reason.contains(allowed), "{body:?}: {reason}");
            }
        }
        let twice = command(retry(), "{\"newKey\":true,\"newKey\":true}").unwrap_err();
        assert!(twice.contains("duplicate"), "{twice}");
    }
}
