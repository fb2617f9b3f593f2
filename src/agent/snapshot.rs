//! The snapshot of the agent's state, and the errors in it that matter most.

use std::sync::Arc;
use std::time::Duration;

use super::admin::operator_hint;
use super::est::token_hint;
use super::executor::Executor;
use super::identity::Identity;
use super::operator::install_hint;
use super::persist::{PUBLISH_RETRY, Published};
use super::reporting::last_tenth;
use crate::config::{Enrollment, EstAuthorizationConfig, TrustDomainSource, WhenStale};
use crate::lifecycle::IdentityView;
use crate::problem::{LastError, MAX_DETAIL, ProblemCode, Report};
use crate::publish::status::credential_status;
use crate::publish::{CurrentBundle, IdentitySnapshot, ShownError, Snapshot, SvidAndKey};
use miaf_client::api::{EstAuthorization, EstStatus, EstUrlSource, IdentityName, State};
use miaf_spiffe::svid;
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::time::{Now, Timestamp};

/// Limit on the characters of a URL in the status.
const MAX_URL: usize = 2048;
/// Limit on the characters of the name of a file or credential in the status.
const MAX_SOURCE: usize = 512;
/// Limit on the characters of the name of a file in a hint, which has a limit of its own.
const MAX_SOURCE_IN_HINT: usize = 256;

impl Executor {
    /// The snapshot, with what came of publishing the files of each identity.
    pub(super) fn snapshot(&self, now: Now, published: &[Published]) -> Snapshot {
        let mut identities = self.identities.iter().enumerate().filter_map(|(nth, identity)| {
            let view = self.lifecycle.identity(identity.index)?;
            Some(self.identity_snapshot(identity, view, now, published.get(nth)))
        });
        let provider = self.config.key.provider;
        let default_identity = identities
            .next()
            .unwrap_or_else(|| IdentitySnapshot::empty(IdentityName::DEVICE, State::Unconfigured, provider));
        let other_identities: Vec<_> = identities.collect();
        // A credential that keeps an identity from its next request is shown there, and not twice.
        let is_shown = |(error, _): &ShownError| {
            let of_identities = std::iter::once(&default_identity).chain(&other_identities);
            let mut errors = of_identities.filter_map(|identity| identity.last_error.as_ref());
            let code = ProblemCode::FactoryCredential;
            error.report.code == code && errors.any(|(error, _)| error.report.code == code)
        };
        Snapshot {
            is_known: true,
            trust_domain: self.trust_domain.name(&self.identities).cloned(),
            bundle: self.trust_domain.bundle.as_ref().map(|cached| CurrentBundle {
                bundle: cached.bundle.clone(),
                fetched_at: cached.record.fetched_at,
                refresh_at: self.bundle_refresh_at(now),
                refresh_interval: self.config.bundle_refresh,
                stale_at: self.trust_domain.stale_at().filter(|_| self.lifecycle.trusts_clock(now)),
                when_stale: self.config.staleness.when_stale,
            }),
            bootstrap: self.provisioning.bootstrap.facts().cloned(),
            trust: self.trust_domain.issuer.transport().trust().facts(),
            last_error: self.last_error(now).filter(|shown| !is_shown(shown)),
            default_identity,
            other_identities,
            cache: Arc::default(),
        }
    }

    fn identity_snapshot(
        &self,
        identity: &Identity,
        view: IdentityView<'_>,
        now: Now,
        published: Option<&Published>,
    ) -> IdentitySnapshot {
        let current = identity.current.clone();
        let provider =
            current.as_ref().map_or(identity.config.key.provider, |current| current.key.provider());
        let in_lifecycle = || {
            let (mut error, wait) = view.last_error(now)?;
            if error.report.code == ProblemCode::OperatorNeeded {
                let (name, enroll) = (&identity.name, &identity.config.enroll);
                error.report = match identity.requested_at {
                    Some(at) => {
                        let consequence =
                            format!("A request was made at {at}, and no chain for it is installed yet");
                        let hint = install_hint(name, enroll, at);
                        error.report.with_consequence(&consequence).with_hint(Some(hint))
                    }
                    None => error.report.with_hint(Some(operator_hint(name, Some(enroll)))),
                };
            }
            let code = error.report.code.known();
            if let Some(hint) = code.and_then(|code| token_hint(code, &identity.config.enroll)) {
                error.report = error.report.with_hint(Some(hint));
            }
            Some((error, wait.map(|wait| now.wall.after(wait))))
        };
        let in_files = || {
            let of_certificate = || self.provisioning.est_problem(&identity.name).cloned();
            Some((identity.operator_problem.clone().or_else(of_certificate)?, None))
        };
        let in_publishing = || {
            let report = published?.failure.clone()?;
            let error = LastError { report, at: now.wall, permanent: true };
            Some((error, Some(now.wall.after(PUBLISH_RETRY))))
        };
        let untrusted = current.as_deref().and_then(|current| self.untrusted(current, now));
        let untrusted = untrusted.map(|error| (error, self.bundle_refresh_at(now)));
        let last_error = more_important(in_files(), in_lifecycle()).or_else(in_publishing);
        IdentitySnapshot {
            name: identity.name.clone(),
            enroll: Some(identity.config.enroll.as_str()),
            est: self.est_status(identity, view, now),
            state: view.state(now),
            renew_at: view.renew_at(),
            renewal_window: view.renewal_window(),
            provider,
            key_is_lost: view.key_is_lost(),
            key_since: identity.key_use.since,
            key_renewals: identity.key_use.renewals,
            retry_after_until: view.retry_after_until(now),
            fresh_token: token_hint(ProblemCode::TokenNeeded, &identity.config.enroll),
            ends_while_waiting: view.svid_ends_before_retry_after(now),
            last_error: last_error.or_else(|| untrusted.clone()),
            untrusted,
            current,
            previous: None, // the broadcaster knows what it has sent before
            generation: published.and_then(|published| published.generation),
            users: identity.config.users.clone(),
            cache: Arc::default(),
        }
    }

    /// How an identity enrolls over EST, if it does (X7, X26, X27).
    fn est_status(&self, identity: &Identity, view: IdentityView<'_>, now: Now) -> Option<EstStatus> {
        let Enrollment::Est(est) = &identity.config.enroll else { return None };
        let document = self.trust_domain.discovery.as_ref().map(|cached| &cached.document);
        let endpoint = identity.est.endpoint(est, document);
        let url_source = match identity.est.has_configured_url() {
            true => EstUrlSource::Configuration,
            false => EstUrlSource::Discovery,
        };
        let authorization = match &est.authorization {
            EstAuthorizationConfig::Token { .. } => EstAuthorization::Token,
            EstAuthorizationConfig::Certificate(_) => EstAuthorization::Certificate,
        };
        Some(EstStatus {
            url_source: endpoint.as_ref().map(|_| url_source.into()),
            url: endpoint.map(|endpoint| Excerpt::of(endpoint.url.as_url(), MAX_URL).into()),
            authorization: authorization.into(),
            token_source: est.token().map(|source| Excerpt::of(source.shown(), MAX_SOURCE).into()),
            has_token: identity.est.has_token(),
            token_needed: view.needs_token(now),
            token_needed_after: view.needs_token_after(now),
            certificate: self.provisioning.est_facts(&identity.name).map(credential_status),
            tls12_allowed: est.tls12,
            standardized: !est.allow_nonstandard,
        })
    }

    /// The error that concerns no single identity and matters most, and when the agent tries again.
    fn last_error(&self, now: Now) -> Option<ShownError> {
        let in_lifecycle = || {
            let (error, wait) = self.lifecycle.last_error(now)?;
            Some((error, wait.map(|wait| now.wall.after(wait))))
        };
        let in_provisioning = || {
            let problem = self.provisioning.problem(self.trust_domain.issuer.transport())?;
            Some((problem, Some(now.wall.after(self.provisioning.next_check_in(now)))))
        };
        let other = self.stale_bundle(now, in_lifecycle()).or_else(in_lifecycle).or_else(in_provisioning);
        // Nothing else tells of files that should be gone.
        let other = match (self.removal_problem().cloned(), other) {
            (Some(problem), other) => {
                Some((with_besides(problem, other), Some(now.wall.after(PUBLISH_RETRY))))
            }
            (None, other) => other,
        };
        // What an operator has just done comes first: perhaps it was to correct the other.
        let Some(rejected) = self.rejected.clone() else { return other };
        Some((with_besides(rejected, other), None))
    }

    /// Time until the bundle becomes stale. `None`: it is stale, or never will be, or the clock
    /// does not tell.
    pub(super) fn bundle_stale_in(&self, now: Now) -> Option<Duration> {
        let stale_at = self.trust_domain.stale_at().filter(|_| self.lifecycle.trusts_clock(now))?;
        Some(now.wall.until(stale_at)).filter(|left| !left.is_zero())
    }

    /// Time until the last tenth of the lifetime of an SVID begins whose successor an operator
    /// brings: that is logged.
    pub(super) fn operator_reminder_in(&self, now: Now) -> Option<Duration> {
        let by_operator = self.identities.iter().filter(|identity| identity.config.enroll.is_by_operator());
        let reminders = by_operator.filter_map(|identity| Some(last_tenth(&identity.current.as_ref()?.svid)));
        reminders.map(|at| now.wall.until(at)).filter(|left| !left.is_zero()).min()
    }

    /// The error of a stale bundle, with what is wrong otherwise: that is why it is, most likely.
    fn stale_bundle(&self, now: Now, other: Option<ShownError>) -> Option<ShownError> {
        let stale_at = self.trust_domain.stale_at().filter(|_| self.lifecycle.trusts_clock(now))?;
        let cached = self.trust_domain.bundle.as_ref().filter(|_| stale_at <= now.wall)?;
        let fetched_at = cached.record.fetched_at;
        let consequence = match self.config.staleness.when_stale {
            WhenStale::Serve => "It is served all the same",
            WhenStale::Withdraw => "The sockets hand out neither SVIDs nor the bundle",
        };
        let why = format!("it was last known to be current at {fetched_at}, and is stale since {stale_at}");
        let title = "The trust bundle is older than bundle.max_age";
        let report = Report::new(ProblemCode::BundleStale, title, &why).with_consequence(consequence);
        let error = |report| LastError { report, at: stale_at, permanent: false };
        let Some((other, retry_at)) = other else {
            return Some((error(report), self.bundle_refresh_at(now)));
        };
        let report = report.with_consequence(&format!("Besides: {}", other.report.message()));
        let hint = other.report.hint().map(str::to_owned);
        let report = if hint.is_some() { report.with_hint(hint) } else { report };
        Some((LastError { permanent: other.permanent, ..error(report) }, retry_at))
    }

    fn bundle_refresh_at(&self, now: Now) -> Option<Timestamp> {
        self.lifecycle.bundle_refresh_in(now).map(|wait| now.wall.after(wait))
    }

    /// The error of an SVID that is valid by the clock, and that the trust bundle does not vouch
    /// for (any more): nothing that validates it accepts it (miaf-v0 B3).
    fn untrusted(&self, current: &SvidAndKey, now: Now) -> Option<LastError> {
        // An empty bundle is the error of all identities.
        let cached =
            self.trust_domain.bundle.as_ref().filter(|cached| !cached.bundle.anchors().is_empty())?;
        let untrusted =
            current.is_valid(now.wall) && !svid::is_trusted(&current.svid, &cached.bundle, now.wall);
        let title = "The trust bundle does not vouch for the SVID";
        let why = "no anchor of the trust bundle leads to this SVID, so others refuse it";
        let report = Report::new(ProblemCode::SvidNotTrusted, title, &why);
        let report = match self.config.mis.as_ref().map(|mis| &mis.source) {
            Some(TrustDomainSource::BundleFile(file)) => {
                let file = Excerpt::of(file.display(), MAX_SOURCE_IN_HINT);
                report.with_hint(Some(format!(
                    "Ask the operator of the MIS for the current trust bundle, and put it into {file}, which the agent \
                     reads by itself"
                )))
            }
            _ => report,
        };
        untrusted.then_some(LastError { report, at: cached.record.fetched_at, permanent: false })
    }
}

/// An error, with another one in its detail.
fn with_besides(mut error: LastError, other: Option<ShownError>) -> LastError {
    if let (Some(detail), Some((LastError { report, .. }, _))) = (&mut error.report.detail, other) {
        let both = format_args!("{detail}. Besides: {}", report.message());
        *detail = Excerpt::of(both, MAX_DETAIL).into();
    }
    error
}

/// The error of an operator's files, or that of the lifecycle: the later one, since a chain may have
/// come by command meanwhile. That an operator is needed says less than what is wrong with their
/// files.
fn more_important(in_files: Option<ShownError>, in_lifecycle: Option<ShownError>) -> Option<ShownError> {
    match (in_files, in_lifecycle) {
        (Some(files), Some(lifecycle)) => {
            let needs = [ProblemCode::OperatorNeeded, ProblemCode::TokenNeeded];
            let needed = needs.iter().any(|code| lifecycle.0.report.code == *code);
            Some(if needed || lifecycle.0.at < files.0.at { files } else { lifecycle })
        }
        (files, lifecycle) => files.or(lifecycle),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_chain_is_shown_over_an_older_error_of_a_file() {
        let error = |code: ProblemCode, at: &str| {
            let report = Report::new(code, "It is refused", &"why");
            Some((LastError { report, at: Timestamp::from_rfc3339(at).unwrap(), permanent: true }, None))
        };
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let (file, chain) = (ProblemCode::InstalledCredential, ProblemCode::SvidRefused);
        for (in_files, in_lifecycle, shown) in [
            (error(file, early), error(chain, late), chain),
            (error(file, late), error(chain, early), file),
            (error(file, early), error(ProblemCode::OperatorNeeded, late), file),
            (error(file, early), None, file),
            (None, error(chain, early), chain),
        ] {
            assert_eq!(more_important(in_files, in_lifecycle).unwrap().0.report.code, shown);
        }
        assert!(more_important(None, None).is_none());
    }
}
