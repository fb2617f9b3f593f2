//! `POST /v1/retry`, `/v1/renew` and `/v1/reset-identity`: admin commands to the running agent.

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::platform::log::AUDIT;
use crate::publish::Snapshot;
use crate::server::command_queue::{AdminCommand, CommandError};
use crate::server::context::ServerContext;
use crate::server::peer::{Peer, Role};
use crate::server::request_body;
use crate::server::response::{self, HttpResponse, JSON, method_not_allowed, problem};
use miaf_client::api::Accepted;
use miaf_spiffe::TrustDomain;
use miaf_spiffe::json;

/// The path of an admin command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandPath {
    /// `/v1/retry`
    Retry,
    /// `/v1/renew`
    Renew,
    /// `/v1/reset-identity`
    ResetIdentity,
}

/// The body of an admin command, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CommandRequest {
    command: AdminCommand,
    /// For [`AdminCommand::ResetIdentity`]: the trust domain that the caller expects to leave.
    trust_domain: Option<TrustDomain>,
}

impl CommandPath {
    const ALL: [Self; 3] = [Self::Retry, Self::Renew, Self::ResetIdentity];

    /// The path.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "/v1/retry",
            Self::Renew => "/v1/renew",
            Self::ResetIdentity => "/v1/reset-identity",
        }
    }

    /// The command, as on the command line.
    fn command_name(self) -> &'static str {
        self.as_str().trim_start_matches("/v1/")
    }

    pub(super) fn parse(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == path)
    }

    /// Parses a body.
    ///
    /// # Errors
    /// A sentence that says what is allowed.
    fn read(self, body: &[u8]) -> Result<CommandRequest, String> {
        let request = |command| CommandRequest { command, trust_domain: None };
        match self {
            Self::Retry if body.is_empty() => Ok(request(AdminCommand::Retry { new_key: false })),
            Self::Retry => object(body, "be empty, or {\"newKey\": true}")
                .map(|RetryBody { new_key }| request(AdminCommand::Retry { new_key })),
            Self::Renew if body.is_empty() => Ok(request(AdminCommand::Renew)),
            Self::Renew => object(body, "be empty").map(|EmptyBody {}| request(AdminCommand::Renew)),
            Self::ResetIdentity => object(
                body,
                "name the trust domain that is to be left: {\"trustDomain\": \"factory.example\"}",
            )
            .map(|ResetBody { trust_domain }| CommandRequest {
                command: AdminCommand::ResetIdentity,
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EmptyBody {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ResetBody {
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
    let CommandRequest { command, trust_domain } = path.read(&body).map_err(|reason| {
        tracing::info!(target: AUDIT, audit, uid, pid, reason, "admin command rejected: invalid request");
        problem(StatusCode::BAD_REQUEST, &reason)
    })?;
    let audit = command.as_str();
    tracing::info!(target: AUDIT, audit, uid, pid, "admin command received");
    context.counters.command();
    let is_right_domain = trust_domain
        .map_or(Ok(()), |trust_domain| check_trust_domain(&trust_domain, &context.snapshots.borrow()));
    let decision = match is_right_domain {
        Ok(()) => context.commands.send(command).await,
        Err(reason) => Err(CommandError::NotApplicable(reason)),
    };
    let (status, reason) = match decision {
        Ok(detail) => {
            return Ok(response::json(StatusCode::ACCEPTED, JSON, &Accepted { accepted: true, detail }));
        }
        Err(CommandError::NotApplicable(reason)) => (StatusCode::CONFLICT, reason),
        Err(CommandError::Busy) => {
            let reason = "The agent cannot accept the command now: others wait already, or it is shutting down. Try again.";
            (StatusCode::SERVICE_UNAVAILABLE, reason.to_owned())
        }
    };
    tracing::info!(target: AUDIT, audit, uid, pid, reason, "admin command rejected");
    Err(problem(status, &reason))
}

/// Checks that the current identity, if there is one, is in the trust domain that is to be left.
fn check_trust_domain(expected: &TrustDomain, snapshot: &Snapshot) -> Result<(), String> {
    match snapshot.identity.as_ref().map(|identity| identity.svid.spiffe_id().trust_domain()) {
        Some(current) if current != expected => Err(format!(
            "This device has its identity in the trust domain \"{current}\", not in \"{expected}\": nothing is left."
        )),
        _ => Ok(()), // without one the event loop says what to do
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_body_is_validated() {
        let command =
            |path: CommandPath, body: &str| path.read(body.as_bytes()).map(|request| request.command);
        for (body, new_key) in
            [("", false), ("{}", false), ("{\"newKey\":false}", false), ("{\"newKey\": true}", true)]
        {
            assert_eq!(command(CommandPath::Retry, body), Ok(AdminCommand::Retry { new_key }), "{body:?}");
        }
        for body in ["", "{}"] {
            assert_eq!(command(CommandPath::Renew, body), Ok(AdminCommand::Renew));
        }
        // As everywhere (RFC 8259 section 8.1).
        assert_eq!(command(CommandPath::Renew, "\u{feff}{}"), Ok(AdminCommand::Renew));
        assert_eq!(
            command(CommandPath::Retry, "\u{feff}{\"newKey\":true}"),
            Ok(AdminCommand::Retry { new_key: true })
        );
        let request = CommandPath::ResetIdentity.read(b"{\"trustDomain\":\"factory.example\"}").unwrap();
        assert_eq!(request.command, AdminCommand::ResetIdentity);
        assert_eq!(request.trust_domain, Some(TrustDomain::parse("factory.example").unwrap()));
        for (path, bodies, allowed) in [
            (
                CommandPath::Retry,
                &["null", "[true]", "true", "{\"newKey\":1}", "{\"newKey\":null}", "{\"new_key\":true}", " "]
                    [..],
                "be empty, or {\"newKey\": true}",
            ),
            (CommandPath::Renew, &["[]", "{\"newKey\":true}", "x"], "be empty"),
            (
                CommandPath::ResetIdentity,
                &["", "{}", "[\"a\"]", "{\"trustDomain\":5}", "{\"trustDomain\":\"No Domain\"}"],
                "name the trust domain that is to be left",
            ),
        ] {
            for body in bodies {
                let reason = command(path, body).unwrap_err();
                assert!(reason.contains(allowed), "{body:?}: {reason}");
            }
        }
        let twice = command(CommandPath::Retry, "{\"newKey\":true,\"newKey\":true}").unwrap_err();
        assert!(twice.contains("duplicate"), "{twice}");
    }
}
