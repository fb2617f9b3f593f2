//! The choice of the one action that is next, among the work of the trust domain and of all
//! identities.
//!
//! Work of the trust domain that is due comes first: the requests of every identity depend on it,
//! and its own gates keep it from being due all the time. Identities that have work due take turns,
//! so that none delays another by more than the one action in flight.

use std::time::Duration;

use super::types::{Action, IdentityIndex};

/// Longest sleep of an idle lifecycle.
const MAX_SLEEP: Duration = Duration::from_secs(24 * 3600);

/// An action, and the time until it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) due_in: Duration,
    pub(super) action: Action,
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Execute(Action),
    Sleep(Duration),
}

/// The turns of the identities.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scheduler {
    last_served: Option<IdentityIndex>,
}

impl Scheduler {
    /// Picks among the work given. Of two due actions of one identity, or of the trust domain, the
    /// first one wins.
    pub(super) fn next(&self, work: impl Iterator<Item = Work>) -> Next {
        let mut chosen: Option<((usize, usize), Action)> = None;
        let mut sleep = MAX_SLEEP;
        for Work { due_in, action } in work {
            if !due_in.is_zero() {
                sleep = sleep.min(due_in);
                continue;
            }
            let turn = self.turn(action);
            if chosen.is_none_or(|(first, _)| turn < first) {
                chosen = Some((turn, action));
            }
        }
        chosen.map_or(Next::Sleep(sleep), |(_, action)| Next::Execute(action))
    }

    /// Notes that an action begins.
    pub(super) fn started(&mut self, action: Action) {
        if let Action::Identity(index, _) = action {
            self.last_served = Some(index);
        }
    }

    /// Rank of an action: the trust domain first, then the identities that follow the one served
    /// last, then the others.
    fn turn(&self, action: Action) -> (usize, usize) {
        match action {
            Action::FetchDiscovery | Action::FetchBundle => (0, 0),
            Action::Identity(index, _) if self.last_served.is_none_or(|last| index > last) => (1, index.0),
            Action::Identity(index, _) => (2, index.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::IdentityAction::{CreateKey, ProveKey};
    use super::*;

    fn work(due_in: u64, action: Action) -> Work {
        Work { due_in: Duration::from_secs(due_in), action }
    }

    fn of(index: usize) -> Action {
        Action::Identity(IdentityIndex(index), CreateKey)
    }

    #[test]
    fn identities_with_due_work_take_turns() {
        let mut scheduler = Scheduler::default();
        let mut served = Vec::new();
        for _ in 0..7 {
            let Next::Execute(action) = scheduler.next((0..3).map(|index| work(0, of(index)))) else {
                panic!("nothing is executed although all are due");
            };
            scheduler.started(action);
            served.push(action);
        }
        assert_eq!(served, [0, 1, 2, 0, 1, 2, 0].map(of));
        // One that is not due is passed over, and loses nothing but this turn.
        let some = [work(9, of(1)), work(0, of(0)), work(0, of(2))];
        assert_eq!(scheduler.next(some.into_iter()), Next::Execute(of(2)));
    }

    #[test]
    fn due_work_of_the_trust_domain_comes_first() {
        let scheduler = Scheduler::default();
        let all = [work(0, of(0)), work(0, Action::FetchBundle), work(0, Action::FetchDiscovery)];
        assert_eq!(
            scheduler.next(all.into_iter()),
            Next::Execute(Action::FetchBundle),
            "the first of the two"
        );
        let later = [work(0, of(1)), work(1, Action::FetchDiscovery)];
        assert_eq!(scheduler.next(later.into_iter()), Next::Execute(of(1)), "what is not due delays nothing");
    }

    #[test]
    fn first_due_action_of_an_identity_wins() {
        let prove = Action::Identity(IdentityIndex(1), ProveKey);
        let both = [work(0, prove), work(0, of(1))];
        assert_eq!(Scheduler::default().next(both.into_iter()), Next::Execute(prove));
    }

    #[test]
    fn idle_scheduler_sleeps_until_the_first_work() {
        let scheduler = Scheduler::default();
        let two = [work(70, of(1)), work(60, Action::FetchBundle)];
        assert_eq!(scheduler.next(two.into_iter()), Next::Sleep(Duration::from_secs(60)));
        assert_eq!(scheduler.next(std::iter::empty()), Next::Sleep(MAX_SLEEP));
    }
}
