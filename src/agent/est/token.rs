//! The enrollment token: where it comes from, how often it is sent, and when it is wiped (X31, X43, X44).

use zeroize::Zeroizing;

use super::used_tokens::{MOST_REFUSALS, Standing};
use super::{EstState, MAX_PATH, Wiping};
use crate::agent::blocking;
use crate::agent::executor::Executor;
use crate::agent::identity::Identity;
use crate::agent::operator::{Supply, gone};
use crate::agent::persist::{forget, save};
use crate::agent::reporting::{cause, hint};
use crate::config::{Enrollment, EstAuthorizationConfig, EstConfig};
use crate::hint::Reason;
use crate::issuer::{EnrollmentToken, IssuerError};
use crate::lifecycle::{Event, Failure, FailureKind, IdentityIndex, Supplied};
use crate::platform::credentials::Secret;
use crate::platform::{clock, files, random};
use crate::problem::{ProblemCode, Report, remedy};
use crate::server::command_queue::Decision;
use crate::state;
use miaf_spiffe::text::Excerpt;

/// Limit on the characters of the name of a file or credential in a hint, which has a limit of its own.
const MAX_SOURCE: usize = 256;

impl Identity {
    /// What follows from the response to a token: how often it may be sent yet.
    pub(super) async fn outcome_of_token<T>(
        &mut self,
        response: Result<T, IssuerError>,
        token: &EnrollmentToken,
    ) -> Result<T, Failure> {
        let failure = match response {
            Ok(issued) => {
                self.est.issued_with = Some(token.clone());
                return Ok(issued);
            }
            Err(e) => e.to_failure(),
        };
        if failure.kind != FailureKind::Pending {
            self.est.proven = None;
        }
        if failure.kind != FailureKind::NotAuthenticated {
            return Err(failure);
        }
        let refused = self.est.used.refused(token, random::bytes(), clock::now().wall);
        self.save_used_tokens().await;
        let (kind, consequence) = match MOST_REFUSALS.saturating_sub(refused) {
            0 => {
                self.est.token = None;
                let consequence = format!("It was refused {refused} times, and is not sent again");
                (FailureKind::NoToken, consequence)
            }
            _ => (FailureKind::TokenRefused, sent_again(refused)),
        };
        let report = Report { code: ProblemCode::TokenRefused.into(), ..failure.report };
        let hint = token_hint(ProblemCode::TokenRefused, &self.config.enroll);
        let report = report.with_hint(hint).with_consequence(&consequence);
        Err(Failure { kind, report, ..failure })
    }

    /// Wipes what was requested with, if a process before could not, or this one: the SVID that it led
    /// to is current.
    pub(in crate::agent) async fn finish_est_request(&mut self) {
        let Some(Wiping { is_renewal }) = self.est.unwiped.take() else { return };
        self.forget_est_request(is_renewal).await;
        if self.est.unwiped.is_none() && self.issued.is_none() {
            let store = self.store.clone();
            blocking(move || forget::<state::StoredIssuedChain>(&store)).await;
        }
    }

    /// Wipes what the request needed that has led to the current SVID (X43). The record of what was
    /// issued is removed after that: as long as it is there, a restart finishes this.
    pub(in crate::agent) async fn forget_est_request(&mut self, is_renewal: bool) {
        let Enrollment::Est(est) = self.config.enroll.clone() else { return };
        // Another token may have been handed over since the certificate was issued: that one is unused.
        let was_sent = self.est.request.was_token_sent();
        let stored = self.est.request.token.take().map(Zeroizing::new).filter(|_| was_sent);
        let stored = stored.and_then(|token| EnrollmentToken::parse(token.as_bytes()).ok());
        let used = self.est.issued_with.take().or(stored);
        if let Some(token) = used.filter(|_| !is_renewal) {
            self.est.used.spent(&token, random::bytes());
            self.save_used_tokens().await;
            if let EstAuthorizationConfig::Token { source: Some(source), remove: true } = &est.authorization {
                self.remove_token_file(source, token.expose()).await;
            }
        }
        (self.est.token, self.est.request) = (None, state::StoredEstRequest::default());
        (self.est.provisioned, self.est.assembled) = (None, None);
        let store = self.store.clone();
        if let Err(e) = blocking(move || store.remove::<state::StoredEstRequest>()).await {
            self.est.unwiped = Some(Wiping { is_renewal });
            let identity = self.name.as_str();
            tracing::warn!(
                identity,
                hint = hint(&e),
                "an enrollment request that is not needed any more could not be wiped: {}",
                cause(&e)
            );
        }
    }

    /// Whether something about tokens is to be tried again.
    pub(in crate::agent) fn has_token_in_trouble(&self) -> bool {
        let EstState { unwiped, is_file_left, is_used_changed, .. } = &self.est;
        let is_unreadable =
            matches!(self.config.enroll, Enrollment::Est(_)) && self.operator_problem.is_some();
        unwiped.is_some() || *is_file_left || *is_used_changed || is_unreadable
    }

    /// Removes the file of a token that is used up, unless there is another one in it by now.
    async fn remove_token_file(&mut self, source: &Secret, token: &str) {
        let (Some(path), source) = (source.file(), source.clone()) else { return };
        let used = Zeroizing::new(token.to_owned());
        let file = path.clone();
        let removed = blocking(move || {
            let content = source.read().ok().and_then(|content| EnrollmentToken::parse(&content).ok());
            match content {
                Some(content) if content.expose() == used.as_str() => files::remove_if_there(&path),
                _ => Ok(()),
            }
        });
        let removed = removed.await;
        self.est.is_file_left = removed.is_err();
        if let Err(e) = removed {
            let identity = self.name.as_str();
            tracing::warn!(
                identity, file = %file.display(), hint = "Remove it, or make its directory writable for the agent",
                "the file of the enrollment token, which is used up, could not be removed: {}", cause(&e)
            );
        }
    }

    async fn save_used_tokens(&mut self) {
        let used = self.est.used.stored().clone();
        match save(&self.store, used).await {
            Ok(()) => self.est.is_used_changed = false,
            Err(e) => {
                self.est.is_used_changed = true;
                let identity = self.name.as_str();
                tracing::error!(
                    identity,
                    hint = hint(&e),
                    "what is remembered of enrollment tokens could not be stored: {}",
                    cause(&e)
                );
            }
        }
    }

    /// Reads the token that the configuration names, if it is there. One that was handed over by
    /// command, and is under way, serves otherwise.
    pub(in crate::agent) async fn read_token(
        &mut self,
        source: Option<&Secret>,
    ) -> Result<Vec<Supplied>, Report> {
        if self.est.is_used_changed {
            self.save_used_tokens().await;
        }
        let stored = self.est.stored_token();
        let Some(source) = source.cloned() else { return Ok(self.supply_token(stored)) };
        let (shown, secret) = (source.shown(), source.clone());
        let read = blocking(move || match secret.file() {
            // Where it cannot be told whether it is there, the error of reading it says why.
            Some(file) if matches!(file.try_exists(), Ok(false)) => Ok(None),
            _ => secret.read().map(Some).map_err(|e| Reason::of(&e)),
        });
        let unusable = |why: &Reason| {
            let detail = format!("{}: {}", Excerpt::of(&shown, MAX_PATH), why.what);
            let report =
                Report::new(ProblemCode::TokenUnusable, "The enrollment token cannot be used", &detail);
            report.with_hint(why.hint.as_deref())
        };
        let Some(content) = read.await.map_err(|why| unusable(&why))? else {
            return Ok(self.supply_token(stored));
        };
        let token = EnrollmentToken::parse(&content).map_err(|e| unusable(&Reason::of(&e)))?;
        let standing = self.est.used.standing(&token);
        self.est.provisioned = Some(token.clone()).filter(|_| standing != Standing::Spent);
        match standing {
            Standing::Usable => {
                let supplied = self.supply_token(Some(token));
                if !supplied.is_empty()
                    && let Some(warning) = source.warning()
                {
                    tracing::warn!(identity = self.name.as_str(), "{warning}");
                }
                Ok(supplied)
            }
            Standing::Superseded => Ok(self.supply_token(stored)), // until there is another one in its place
            _ if stored.is_some() => Ok(self.supply_token(stored)),
            Standing::Spent if self.has_valid_svid() => {
                // As it should be. The process before may have ended before it removed it.
                if let Enrollment::Est(est) = self.config.enroll.clone()
                    && let EstAuthorizationConfig::Token { source: Some(source), remove: true } =
                        &est.authorization
                {
                    self.remove_token_file(source, token.expose()).await;
                }
                Ok(Vec::new())
            }
            Standing::Spent => {
                let why = Reason::from("it is used up: an SVID was issued for it")
                    .with_hint_text("Put a fresh token there; the agent reads it by itself");
                Err(unusable(&why))
            }
            // Another one, by command, has led to the SVID.
            Standing::Refused if self.has_valid_svid() && self.est.used.is_superseded(&token) => {
                Ok(Vec::new())
            }
            Standing::Refused => {
                let why = Reason::from(format!("the MIS has refused it {MOST_REFUSALS} times")).with_hint_text(
                    "Put a fresh token there, which the agent reads by itself; if this one is good after all: \
                     miaf-agent retry",
                );
                Err(unusable(&why))
            }
        }
    }

    /// Reads the source of a token again, if it has a problem: a token by command or another SVID may
    /// have made it none. Returns what the lifecycle has to know.
    pub(in crate::agent) async fn recheck_token(&mut self) -> Vec<Event> {
        let Enrollment::Est(est) = self.config.enroll.clone() else { return Vec::new() };
        if self.operator_problem.is_none() || est.certificate().is_some() {
            return Vec::new();
        }
        let read = self.read_token(est.token()).await;
        self.note_operator_files(read)
    }

    fn has_valid_svid(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.is_valid(clock::now().wall))
    }

    /// Takes a token as the one that may be used. Returns what the lifecycle has to know.
    fn supply_token(&mut self, token: Option<EnrollmentToken>) -> Vec<Supplied> {
        let Some(token) = token else { return Vec::new() };
        let is_known = self.est.token.as_ref().is_some_and(|known| known.expose() == token.expose());
        if is_known {
            return Vec::new();
        }
        self.est.token = Some(token);
        vec![Supplied::Token]
    }

    /// Has tokens that were refused sent again: an operator says so.
    pub(in crate::agent) fn forgive_tokens(&mut self) {
        self.est.is_used_changed |= self.est.used.forgive();
        self.est.proven = None;
    }
}

impl Executor {
    /// Stores an enrollment token that an operator hands over, to be used for the next enrollment.
    ///
    /// # Errors
    /// Why it is refused. The one before it stays.
    pub(in crate::agent) async fn enroll(
        &mut self,
        index: IdentityIndex,
        token: &str,
    ) -> Result<Supply, Reason> {
        let Some(identity) = self.identities.get_mut(index.0) else { return Err(gone()) };
        let token = EnrollmentToken::parse(token.as_bytes()).map_err(|e| Reason::of(&e))?;
        if identity.est.used.standing(&token) == Standing::Spent {
            let why = Reason::from("this token is used up: an SVID was issued for it");
            return Err(why.with_hint_text("Have the operator of the MIS create a fresh one"));
        }
        let before = &identity.est.request;
        let is_same = before.token.as_deref() == Some(token.expose());
        let request = state::StoredEstRequest {
            csr: before.csr.clone(),
            token: Some(token.expose().to_owned()),
            token_for_pending_key: before.token_for_pending_key.filter(|_| is_same),
        };
        save(&identity.store, request.clone()).await.map_err(|e| Reason::of(&e))?;
        identity.est.request = request;
        if identity.est.used.standing(&token) == Standing::Refused {
            identity.forgive_tokens(); // it is the operator's word that it is good
        }
        // The one before it may lie in a file that is read again and again.
        let before = identity.est.provisioned.as_ref().or(identity.est.token.as_ref());
        let mut is_changed = identity.est.used.supersede(before, &token, random::bytes());
        // What the one before it was good for is there, and is adopted later, by another process even.
        let awaits_adoption = identity.issued.as_ref().is_some_and(|issued| !issued.renewal);
        let with = identity.est.issued_with.as_ref().filter(|with| with.expose() != token.expose());
        if let Some(with) = with.filter(|_| awaits_adoption) {
            identity.est.used.spent(with, random::bytes());
            is_changed = true;
        }
        if is_changed {
            identity.save_used_tokens().await;
        }
        identity.est.token = None; // so that also the same one is news
        let supplied = identity.supply_token(Some(token));
        let detail = if identity.has_valid_svid() {
            "The token is stored. The identity has a valid SVID, which is renewed without it; it is used if the MIS does not \
             renew that one."
        } else {
            "The token is stored, and the identity is requested with it now; the status shows the result."
        };
        let mut events: Vec<_> = supplied.into_iter().map(|what| Event::Supplied(index, what)).collect();
        events.extend(identity.recheck_token().await);
        Ok(Supply { decision: Decision::Accepted(detail.to_owned()), events })
    }
}

/// What becomes of a token that was refused so often.
pub(super) fn sent_again(refused: u32) -> String {
    format!("It is sent again, {} times at most", MOST_REFUSALS.saturating_sub(refused))
}

/// What an operator does where a fresh token is needed, with the place that the configuration names for
/// it. `None`: the code is not about that.
pub(in crate::agent) fn token_hint(code: ProblemCode, enroll: &Enrollment) -> Option<String> {
    let Enrollment::Est(est) = enroll else { return None };
    let hint = match code {
        ProblemCode::TokenNeeded | ProblemCode::TokenRefused => remedy(code)?,
        _ => return None,
    };
    Some(with_token_source(hint, est))
}

/// A hint about a fresh token, with the place that the configuration names for it, if it names one.
pub(super) fn with_token_source(hint: &str, est: &EstConfig) -> String {
    let Some(source) = est.token() else { return hint.to_owned() };
    let shown = Excerpt::of(source.shown(), MAX_SOURCE);
    match source {
        Secret::Credential(_) => {
            format!("{hint}; or replace {shown}, which the agent reads at a start of its service")
        }
        Secret::File(_) => format!("{hint}; or put it into {shown}, which the agent reads by itself"),
    }
}

pub(super) fn no_token(enroll: &Enrollment) -> Failure {
    let title = "This identity needs an enrollment token";
    let report = Report::new(ProblemCode::TokenNeeded, title, &"the one that there was is gone");
    let report = report.with_hint(token_hint(ProblemCode::TokenNeeded, enroll));
    Failure { kind: FailureKind::NoToken, retry_after: None, report }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hint_about_a_token_names_its_source() {
        let by = |source| {
            Enrollment::Est(Box::new(EstConfig {
                authorization: EstAuthorizationConfig::Token { source, remove: false },
                common_name: None,
                request_spiffe_id: None,
                allow_nonstandard: false,
                tls12: false,
            }))
        };
        let by_file = by(Some(Secret::File("/etc/miaf-agent/line-7.token".into())));
        let by_credential = by(Some(Secret::Credential("est-token".into())));
        let deep = by(Some(Secret::File(format!("/{}", "d/".repeat(2000)).into())));
        for code in [ProblemCode::TokenNeeded, ProblemCode::TokenRefused] {
            let remedy = remedy(code).unwrap();
            for (enroll, end) in [
                (&by_file, "; or put it into /etc/miaf-agent/line-7.token, which the agent reads by itself"),
                (
                    &by_credential,
                    "; or replace the credential \"est-token\", which the agent reads at a start of its service",
                ),
                (&by(None), ""),
            ] {
                let hint = token_hint(code, enroll).unwrap();
                assert_eq!(hint.strip_prefix(remedy), Some(end));
                // A hint has a limit of its own, and its end is what names the place.
                let report = Report::new(code, "", &"").with_hint(Some(&hint));
                assert_eq!(report.hint(), Some(hint.as_str()));
            }
            let bounded = token_hint(code, &deep).unwrap();
            let report = Report::new(code, "", &"").with_hint(Some(&bounded));
            assert!(report.hint().unwrap().ends_with("which the agent reads by itself"), "{bounded}");
        }
        assert_eq!(token_hint(ProblemCode::SvidRefused, &by_file), None);
        assert_eq!(token_hint(ProblemCode::TokenNeeded, &Enrollment::FactoryCert), None);
    }
}
