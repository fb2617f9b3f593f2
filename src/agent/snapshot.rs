//! The snapshot of the agent's state, and the error in it that matters most.

use std::sync::Arc;

use super::executor::Executor;
use super::persist::PUBLISH_RETRY;
use crate::lifecycle::{IdentityView, State};
use crate::problem::{LastError, MAX_DETAIL, Report};
use crate::publish::{self, CurrentBundle, Snapshot};
use miaf_spiffe::svid;
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::time::{Now, Timestamp};

/// An error, and when the agent tries again, if it does without a correction.
type Shown = (LastError, Option<Timestamp>);

impl Executor {
    /// The snapshot, which has room for one identity: the first.
    pub(super) fn snapshot(
        &self,
        now: Now,
        generation: Option<u64>,
        not_published: Option<&Report>,
    ) -> Snapshot {
        let view = self.lifecycle.identities().next().map(|(_, view)| view);
        let identity = self.identities.first();
        let current = identity.and_then(|identity| identity.current.clone());
        let of_identity = identity.and_then(|identity| identity.trust_domain());
        Snapshot {
            is_known: true,
            state: view.map_or(State::Unconfigured, |view| view.state(now)),
            trust_domain: self.trust_domain.name().or(of_identity).cloned(),
            renew_at: view.and_then(|view| view.renew_at()),
            renewal_window: view.and_then(|view| view.renewal_window()),
            provider: current
                .as_ref()
                .map_or(self.config.key.provider, |current| current.key.provider())
                .as_str(),
            bundle: self.trust_domain.bundle.as_ref().map(|cached| CurrentBundle {
                bundle: cached.bundle.clone(),
                fetched_at: cached.record.fetched_at,
                refresh_at: self.bundle_refresh_at(now),
            }),
            bootstrap: self.provisioning.bootstrap.facts().cloned(),
            trust: self.trust_domain.issuer.transport().trust().facts(),
            key_is_lost: view.is_some_and(|view| view.key_is_lost()),
            retry_after_until: view.and_then(|view| view.retry_after_until(now)),
            ends_while_waiting: view.is_some_and(|view| view.svid_ends_before_retry_after(now)),
            last_error: self.last_error(view, current.as_deref(), now, not_published),
            identity: current,
            previous_identity: None, // the publication knows what it has published before
            generation,
            key_users: self.config.key_users.clone(),
            cache: Arc::default(),
        }
    }

    /// The error that matters most, and when the agent tries again.
    fn last_error(
        &self,
        view: Option<IdentityView<'_>>,
        current: Option<&publish::Identity>,
        now: Now,
        not_published: Option<&Report>,
    ) -> Option<Shown> {
        let in_lifecycle = || {
            let (error, wait) = view?.last_error(now)?;
            Some((error, wait.map(|wait| now.wall.after(wait))))
        };
        let in_publishing = || {
            let error = LastError { report: not_published?.clone(), at: now.wall, permanent: true };
            Some((error, Some(now.wall.after(PUBLISH_RETRY))))
        };
        let provisioning = || {
            let problem = self.provisioning.problem(self.trust_domain.issuer.transport())?;
            Some((problem, Some(now.wall.after(self.provisioning.next_check_in(now)))))
        };
        let other = in_lifecycle()
            .or_else(in_publishing)
            .or_else(|| Some((self.untrusted(current?, now)?, self.bundle_refresh_at(now))))
            .or_else(provisioning);
        // What an operator has just done comes first: perhaps it was to correct the other.
        let Some(mut rejected) = self.rejected.clone() else { return other };
        if let (Some(detail), Some((LastError { report, .. }, _))) = (&mut rejected.report.detail, other) {
            let besides = report.detail.as_deref().unwrap_or("no more is known");
            let both = format_args!("{detail}. Besides: {}: {besides}", report.title);
            *detail = Excerpt::of(both, MAX_DETAIL).into();
        }
        Some((rejected, None))
    }

    fn bundle_refresh_at(&self, now: Now) -> Option<Timestamp> {
        self.lifecycle.bundle_refresh_in(now).map(|wait| now.wall.after(wait))
    }

    /// The error of an SVID that is valid by the clock, and that the trust bundle does not vouch for (any more): nothing
    /// that validates it accepts it (miaf-v0 B3).
    fn untrusted(&self, current: &publish::Identity, now: Now) -> Option<LastError> {
        let cached = self.trust_domain.bundle.as_ref()?;
        let untrusted =
            current.is_valid(now.wall) && !svid::is_trusted(&current.svid, &cached.bundle, now.wall);
        let why = "no anchor of the trust bundle leads to this device's SVID, so others refuse it. \
                   Ask the operator of the MIS whether the bundle is as it should be";
        let report =
            Report::of_agent("svid-not-trusted", "The trust bundle does not vouch for the SVID", &why);
        untrusted.then_some(LastError { report, at: cached.record.fetched_at, permanent: false })
    }
}
