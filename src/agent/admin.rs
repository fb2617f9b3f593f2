//! Admin commands: their validation, the queue of those accepted, and their execution. A command is
//! answered at once, also while an action is in flight, and executed when that has ended: an action
//! is never interrupted.

use std::collections::VecDeque;

use super::ConfigLocation;
use super::blocking;
use super::executor::Executor;
use super::identity::Identity;
use super::operator::Supply;
use super::reporting::cause;
use crate::config::{Config, Enrollment, IdentityConfig};
use crate::hint::{Hint as _, Reason};
use crate::lifecycle::{Command, Event};
use crate::server::command_queue::{AdminCommand, CommandError, QueuedCommand};
use miaf_client::api::IdentityName;
use miaf_spiffe::text::Excerpt;

/// Commands that wait at once for an action to end.
const MAX_QUEUED: usize = 4;

/// Limit of characters of a path in a hint.
const MAX_PATH: usize = 160;

/// Accepted commands that are not executed yet. They outlive a change of the configuration.
#[derive(Debug, Default)]
pub(super) struct AcceptedCommands(VecDeque<Accepted>);

/// A command that is to be executed.
#[derive(Debug)]
pub(super) enum Accepted {
    /// Its caller knows already that it will be.
    Decided(AdminCommand),
    /// Its caller waits for the outcome.
    Awaited(QueuedCommand),
}

/// The part of the agent's state that decides whether a command is valid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conditions<'a> {
    /// The identities that have an SVID, valid or not.
    pub(super) issued: &'a [IdentityName],
    /// What the configuration says of each identity.
    pub(super) identities: &'a [IdentityConfig],
    /// An action is in flight.
    pub(super) is_busy: bool,
}

impl<'a> Conditions<'a> {
    /// The way to the identity with this name.
    fn enroll(&self, name: &IdentityName) -> Option<&'a Enrollment> {
        self.identities.iter().find(|identity| identity.name == *name).map(|identity| &identity.enroll)
    }
}

impl AcceptedCommands {
    /// Answers a command, and queues it if it is valid.
    pub(super) fn accept(
        &mut self,
        given: QueuedCommand,
        conditions: Conditions<'_>,
        place: &ConfigLocation,
    ) {
        let command = given.command.clone();
        if self.0.len() >= MAX_QUEUED {
            return given.reject(CommandError::Busy);
        }
        if let Some(why) = validate(&command, conditions, place) {
            return given.reject(CommandError::NotApplicable(why));
        }
        if command.is_decided_by_execution() {
            return self.0.push_back(Accepted::Awaited(given));
        }
        let way = command.identity().and_then(|name| conditions.enroll(name));
        let begins =
            if conditions.is_busy { " It begins when what the agent is doing has ended." } else { "" };
        if given.accept(format!("{}{begins}", outlook(&command, way))) {
            self.0.push_back(Accepted::Decided(command));
        } else {
            tracing::info!("admin command dropped, since its client has left: {}", command.as_str());
        }
    }

    pub(super) fn next(&mut self) -> Option<Accepted> {
        self.0.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Answers a command that the agent cannot execute in its present state.
pub(super) fn reject(given: QueuedCommand, why: &Reason) {
    given.reject(CommandError::NotApplicable(why.clone()));
}

/// Why a command is invalid, if it is.
fn validate(command: &AdminCommand, conditions: Conditions<'_>, place: &ConfigLocation) -> Option<Reason> {
    let enroll = |name: &IdentityName| conditions.enroll(name);
    match command {
        AdminCommand::Renew(name) if enroll(name).is_some_and(Enrollment::is_by_operator) => {
            Some(by_operator_only(name, enroll(name)))
        }
        AdminCommand::Csr { identity, .. } | AdminCommand::Install { identity, .. } => {
            match enroll(identity) {
                Some(Enrollment::Manual { .. }) => None,
                other => Some(not_manual(identity, other)),
            }
        }
        AdminCommand::Enroll { identity, .. } => {
            let enroll = enroll(identity);
            (!enroll.is_some_and(takes_tokens)).then(|| not_by_token(identity, enroll))
        }
        AdminCommand::Renew(name) if !conditions.issued.contains(name) => Some(
            Reason::from(format!("the identity \"{name}\" has no SVID yet that could be renewed"))
                .with_hint_text(
                    "See in the status what the agent is waiting for; to have it try again now: miaf-agent retry",
                ),
        ),
        AdminCommand::Retire(name) if !conditions.issued.contains(name) => Some(
            Reason::from(format!("the identity \"{name}\" has no SVID, so there is nothing to retire"))
                .with_hint_text("Change the configuration, if it is to have another one: the agent follows it"),
        ),
        // It would go on under the configuration before, back into the trust domain that it is to
        // leave.
        AdminCommand::Retire(_) => place.load().err().map(|e| {
            let Reason { what, hint } = Reason::of(&e);
            let what = format!(
                "the identity would be requested anew under the configuration, which cannot be used: {what}"
            );
            Reason { what, hint: hint.or_else(|| Some("Correct the configuration first".to_owned())) }
        }),
        // The next request has a new key anyway.
        AdminCommand::Retry { new_key: Some(name) } if enroll(name).is_some_and(Enrollment::is_by_operator) => {
            Some(by_operator_only(name, enroll(name)))
        }
        AdminCommand::Retry { .. } | AdminCommand::Renew(_) => None,
    }
}

/// The agent requests nothing for an identity whose SVIDs an operator brings.
fn by_operator_only(name: &IdentityName, enroll: Option<&Enrollment>) -> Reason {
    let what = format!("the SVIDs of the identity \"{name}\" are not requested: an operator brings them");
    Reason::from(what).with_hint_text(operator_hint(name, enroll))
}

/// What an operator does for the next SVID of an identity.
pub(super) fn operator_hint(name: &IdentityName, enroll: Option<&Enrollment>) -> String {
    match enroll {
        Some(Enrollment::Installed { .. }) => {
            "Replace the files that svid_file and key_file of this identity name; the agent reads them again by itself"
                .to_owned()
        }
        Some(Enrollment::Manual { svid_file: Some(file) }) => format!(
            "{}; or put the chain into {}",
            operator_hint(name, None),
            Excerpt::of(file.display(), MAX_PATH)
        ),
        _ => format!(
            "Have the request signed that this prints: miaf-agent csr --identity {name}; then: \
             miaf-agent install --identity {name} chain.pem"
        ),
    }
}

fn not_manual(name: &IdentityName, enroll: Option<&Enrollment>) -> Reason {
    let way = enroll.map_or("", Enrollment::as_str);
    let what = format!("the identity \"{name}\" has enroll = \"{way}\"");
    match enroll {
        Some(Enrollment::Installed { .. }) => Reason::from(what).with_hint_text(operator_hint(name, enroll)),
        _ => Reason::from(what).with_hint_text(
            "Name an identity with enroll = \"manual\" (--identity NAME); this one is enrolled and renewed by the agent",
        ),
    }
}

/// Whether an identity is enrolled by enrollment token.
fn takes_tokens(enroll: &Enrollment) -> bool {
    matches!(enroll, Enrollment::Est(est) if est.certificate().is_none())
}

fn not_by_token(name: &IdentityName, enroll: Option<&Enrollment>) -> Reason {
    let way = enroll.map_or("", Enrollment::as_str);
    let with = if way == "est" { ", with a certificate" } else { "" };
    let what = format!("the identity \"{name}\" has enroll = \"{way}\"{with}: it is not enrolled by a token");
    Reason::from(what).with_hint_text(
        "Name an identity with enroll = \"est\" and without a certificate under [identity.est] (--identity NAME)",
    )
}

/// What an accepted command leads to.
fn outlook(command: &AdminCommand, way: Option<&Enrollment>) -> &'static str {
    match command {
        AdminCommand::Retry { new_key: None } => {
            "What was refused or is being waited for is tried again within seconds, unless a Retry-After delay of the MIS forbids it."
        }
        AdminCommand::Retry { new_key: Some(_) } => {
            "If the key is lost, the agent enrolls with a new one, unless a Retry-After delay of the MIS forbids it. \
             A key that works is kept."
        }
        AdminCommand::Renew(_) => {
            "The identity is renewed now, unless a Retry-After delay of the MIS or an error that the status shows \
             forbids it."
        }
        AdminCommand::Retire(_) => match way {
            Some(Enrollment::Manual { .. }) => {
                "The identity is retired: it is stored apart in the state directory, and what was published is withdrawn. \
                 A new one comes when an operator brings it."
            }
            Some(Enrollment::Installed { .. }) => {
                "The identity is retired: it is stored apart in the state directory, and what was published is withdrawn. \
                 What svid_file and key_file of it hold is adopted again, as long as it is there."
            }
            _ => {
                "The identity is retired: it is stored apart in the state directory, what was published is withdrawn, and a \
                 new one is requested under the configuration."
            }
        },
        AdminCommand::Csr { .. } | AdminCommand::Install { .. } | AdminCommand::Enroll { .. } => {
            "It is executed."
        }
    }
}

impl Executor {
    /// Executes a command: all of it but what the lifecycle does about the event returned. An
    /// action that was chosen before is executed all the same.
    pub(super) fn execute_command(&mut self, command: &AdminCommand) -> Event {
        let identity = command.identity().map(IdentityName::as_str);
        tracing::info!(identity, "admin command executed: {}", command.as_str());
        if matches!(command, AdminCommand::Retry { .. }) {
            self.provisioning.retry();
            self.trust_domain.accept_regressed_bundle();
            self.identities.iter_mut().for_each(Identity::forgive_tokens);
        }
        let index = command.identity().and_then(|name| self.identity(name)).map(|identity| identity.index);
        match (command, index) {
            (AdminCommand::Retry { new_key: Some(_) }, Some(index)) => {
                Event::Command(Command::ReplaceKey(index))
            }
            (AdminCommand::Retry { .. }, _) => Event::Command(Command::Retry),
            (AdminCommand::Renew(_), Some(index)) => Event::Command(Command::Renew(index)),
            // Another configuration came in between, without this identity; or see retire_identity.
            (AdminCommand::Renew(_), None) | (AdminCommand::Retire(_), _) => Event::Wake,
            // See execute_awaited.
            (AdminCommand::Csr { .. } | AdminCommand::Install { .. } | AdminCommand::Enroll { .. }, _) => {
                Event::Wake
            }
        }
    }

    /// Executes a command whose caller waits for the outcome. Returns what the lifecycle has to know.
    pub(super) async fn execute_awaited(&mut self, given: QueuedCommand) -> Vec<Event> {
        let (name, audit) = (given.command.identity().cloned(), given.command.as_str());
        let found = name.as_ref().and_then(|name| self.identity(name)).map(|identity| {
            let enroll = &identity.config.enroll;
            let other = match &given.command {
                AdminCommand::Enroll { .. } => {
                    (!takes_tokens(enroll)).then(|| not_by_token(&identity.name, Some(enroll)))
                }
                _ => {
                    let is_manual = matches!(enroll, Enrollment::Manual { .. });
                    (!is_manual).then(|| not_manual(&identity.name, Some(enroll)))
                }
            };
            (identity.index, other)
        });
        let identity = name.as_ref().map(IdentityName::as_str);
        let outcome = match (given.command.clone(), found) {
            // Another configuration may have come since the command was validated.
            (_, Some((_, Some(other)))) => Err(other),
            (AdminCommand::Enroll { token, .. }, Some((index, None))) => {
                self.enroll(index, token.expose()).await
            }
            (AdminCommand::Csr { spiffe_id, .. }, Some((index, None))) => {
                self.certification_request(index, spiffe_id.as_ref()).await
            }
            (AdminCommand::Install { chain, .. }, Some((index, None))) => self.install(index, chain).await,
            _ => Err(Reason::from("the configuration was changed, and has no such identity any more")),
        };
        let (decision, events) = match outcome {
            Ok(Supply { decision, events }) => {
                tracing::info!(identity, "admin command executed: {audit}");
                (Ok(decision), events)
            }
            Err(reason) => (Err(CommandError::NotApplicable(reason)), Vec::new()),
        };
        let _ = given.decide(decision); // what was done is done, also if the caller has left
        events
    }

    /// Retires the identity. Returns the configuration to go on under, from what is then on the
    /// disk: without an identity or, where it could not be moved away, with it.
    ///
    /// What is published is withdrawn first, durably. After a power cut a device that has its
    /// identity publishes it anew; one that has retired it never finds it published, and
    /// [`Store::retire`](crate::state::Store::retire) leaves nothing to be finished. Retry-After
    /// delays are kept (miaf-v0 E8).
    pub(super) async fn retire_identity(&mut self, name: &IdentityName, place: &ConfigLocation) -> Config {
        let issued = self.identity(name).and_then(|identity| {
            identity.current.clone().map(|current| (current, identity.publisher.clone()))
        });
        let identity = name.as_str();
        let Some((current, mut publisher)) = issued else {
            tracing::info!(identity, "there is no SVID any more that could be retired");
            return self.config.clone();
        };
        // It was valid when the command was accepted. Back into the trust domain that it leaves is
        // no way to go on.
        let next = match place.load() {
            Ok(config) => config,
            Err(e) => {
                tracing::error!(
                    identity,
                    hint = e.hint().map(tracing::field::display),
                    "{e}. The command to retire the identity is not executed: it stays"
                );
                return self.config.clone();
            }
        };
        let store = self.records.store.of(name);
        let used_tokens = self.identity(name).map(|identity| identity.est.used_tokens().clone());
        let others = self.identities.iter().filter(|other| other.name != *name);
        let leaves = others.filter(|other| other.current.is_some()).count() == 0;
        let retired = blocking(move || {
            publisher.withdraw().map_err(|e| e.with_hint().to_string())?;
            let retired = store.retire(leaves).map_err(|e| e.with_hint().to_string())?;
            // A token that is used up stays so (X44).
            if let Some(used) = used_tokens.filter(|used| !used.tokens.is_empty())
                && let Err(e) = store.save(&used)
            {
                tracing::warn!("what is remembered of enrollment tokens could not be stored: {}", cause(&e));
            }
            Ok::<_, String>(retired)
        });
        let spiffe_id = current.svid.spiffe_id();
        let is_by_operator =
            self.identity(name).is_some_and(|identity| identity.config.enroll.is_by_operator());
        match retired.await {
            Ok(dir) => {
                tracing::warn!(
                    identity, %spiffe_id, stored_in = %dir.display(),
                    "identity retired by admin command: it leaves the trust domain \"{}\"{}",
                    spiffe_id.trust_domain(),
                    if is_by_operator { "" } else { ", and is requested anew under the configuration" }
                );
                next
            }
            Err(why) => {
                let why = cause(&why);
                tracing::error!(identity, %spiffe_id, "the identity could not be retired, and stays: {why}");
                self.config.clone()
            }
        }
    }
}
