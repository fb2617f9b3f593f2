//! The main loop: an event, a step of the lifecycle, what the step changed, and the next action or
//! a sleep.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::admin::{Accepted, Conditions};
use super::events::{ExternalEvent, ExternalEvents};
use super::executor::Executor;
use super::{CONFIGURATION_QUIET, ConfigLocation, reload};
use crate::config::{Config, MisConfig};
use crate::lifecycle::{Event, Step};
use crate::platform::clock;
use crate::platform::timer::{Alarm, Woken};
use crate::publish::broadcast::Broadcaster;
use crate::server::command_queue::AdminCommand;
use miaf_client::api::IdentityName;

/// Network and TPM have limits of their own, far below this: an action that takes longer hangs.
const MAX_ACTION: Duration = Duration::from_secs(300);

/// The main loop of the agent under one configuration.
pub(super) struct EventLoop<'a> {
    pub(super) executor: &'a mut Executor,
    pub(super) place: &'a ConfigLocation,
    pub(super) publication: &'a Broadcaster,
    pub(super) external: &'a mut ExternalEvents,
    pub(super) timer: &'a mut Alarm,
    /// Replaces the configuration once the action in flight has ended.
    pub(super) next_config: Option<Config>,
}

impl EventLoop<'_> {
    /// Runs until the configuration changes (and returns it) or until shutdown (`None`).
    pub(super) async fn run(mut self) -> Option<Config> {
        if self.external.rejected.is_some() {
            // It may have been corrected meanwhile.
            self.external.complete_at.get_or_insert_with(|| Instant::now() + CONFIGURATION_QUIET);
        }
        let mut events = vec![Event::Wake];
        loop {
            let mut step = self.step(events);
            if self.external.takes_changed_inputs() {
                self.executor.provisioning.check_soon();
                // Whichever file it was: to read it costs no server anything.
                if self.executor.config.mis.as_ref().is_some_and(MisConfig::reads_bundle_file) {
                    self.step_further(&mut step, vec![Event::BundleFileChanged]);
                }
            }
            let retired = self.execute_commands(&mut step).await;
            self.executor.rejected.clone_from(&self.external.rejected);
            self.external.wait_begins(Some(MAX_ACTION));
            let publish_again = {
                let published = self.executor.persist_and_publish(clock::now(), self.publication);
                self.external.undisturbed(published).await
            };
            if let Some(name) = retired {
                let retiring = self.executor.retire_identity(&name, self.place);
                return Some(self.external.undisturbed(retiring).await);
            }
            if self.next_config.is_some() {
                return self.next_config; // what was in flight has ended, and is stored and published
            }
            if step.action.is_none() && self.has_delays_to_restore() {
                return Some(self.executor.config.clone());
            }
            events = self.execute_or_sleep(&step, publish_again).await?;
        }
    }

    /// Has the lifecycle apply these events. At most one of the steps begins an action.
    fn step(&mut self, events: Vec<Event>) -> Step {
        let mut step = Step { action: None, wake_in: None };
        for event in events {
            let after = self.executor.step(event);
            step = Step { action: step.action.or(after.action), ..after };
        }
        step
    }

    /// Has the lifecycle apply more events, of which there may be none, after a step.
    fn step_further(&mut self, step: &mut Step, events: Vec<Event>) {
        if !events.is_empty() {
            let after = self.step(events);
            *step = Step { action: step.action.or(after.action), ..after };
        }
    }

    fn has_delays_to_restore(&mut self) -> bool {
        let Executor { records, lifecycle, .. } = &mut *self.executor;
        records.has_delays_to_restore(lifecycle, clock::now())
    }

    /// Executes the queued commands. Returns the identity that is to be retired, if one is.
    async fn execute_commands(&mut self, step: &mut Step) -> Option<IdentityName> {
        // A command that came with another configuration is for the agent under that one.
        while self.next_config.is_none()
            && let Some(accepted) = self.external.queue.next()
        {
            let events = match accepted {
                Accepted::Decided(AdminCommand::Retire(name)) => return Some(name),
                Accepted::Decided(command) => vec![self.executor.execute_command(&command)],
                Accepted::Awaited(given) => {
                    self.external.wait_begins(Some(MAX_ACTION));
                    let executing = self.executor.execute_awaited(given);
                    self.external.undisturbed(executing).await
                }
            };
            self.step_further(step, events);
        }
        None
    }

    /// Executes the action of a step, or sleeps, and meanwhile hears external events. Returns the
    /// next events; `None` at shutdown.
    async fn execute_or_sleep(&mut self, step: &Step, publish_again: Option<Duration>) -> Option<Vec<Event>> {
        let Self { executor, place, external, timer, next_config, .. } = self;
        let check_in = executor.provisioning.next_check_in(clock::now());
        let stale_in = executor.bundle_stale_in(clock::now());
        let reminder_in = executor.operator_reminder_in(clock::now());
        let inputs_due_in = external.changed_inputs_due_in();
        let wakes = [step.wake_in, publish_again, stale_in, reminder_in, inputs_due_in];
        let sleep = wakes.into_iter().flatten().fold(check_in, Duration::min);
        let asleep = step.action.is_none();
        external.wait_begins((!asleep).then_some(MAX_ACTION));
        let issued: Vec<_> = executor.names_of_issued().cloned().collect();
        let identities = executor.config.identities.clone();
        let conditions = Conditions { issued: &issued, identities: &identities, is_busy: !asleep };
        // A new device follows its configuration without a reload. Later that would be too easy by
        // a slip; except to correct what was rejected, since for that a reload was asked for.
        let rejected = external.rejected.clone();
        let follows = issued.is_empty() || rejected.is_some() || external.complete_at.is_some();
        let current = executor.config.clone();
        let checks = AtomicBool::new(false);
        let mut work = std::pin::pin!(execute(executor, timer, step, sleep, &checks));
        loop {
            tokio::select! {
                events = &mut work => return Some(events),
                () = at(external.complete_at) => {
                    external.complete_at = None;
                    let in_use = next_config.as_ref().unwrap_or(&current);
                    *next_config = reload(place, external, Some(in_use)).or(next_config.take());
                }
                event = external.next(follows) => match event {
                    ExternalEvent::Shutdown => return None,
                    // An action is never interrupted: a key may be about to be stored, a response
                    // on its way. An invalid configuration does not even disturb it.
                    ExternalEvent::Reload => {
                        external.complete_at = None;
                        *next_config = reload(place, external, None).or(next_config.take());
                    }
                    ExternalEvent::ConfigurationChanged => {
                        external.complete_at = Some(Instant::now() + CONFIGURATION_QUIET);
                    }
                    ExternalEvent::InputChanged => {}
                    ExternalEvent::Command(given) => external.queue.accept(given, conditions, place),
                },
            }
            let is_news = next_config.is_some()
                || !external.queue.is_empty()
                || external.rejected != rejected
                || external.changed_inputs_due_in() != inputs_due_in;
            // A check is not interrupted either: what it has read and sealed would be lost.
            if asleep && is_news && !checks.load(Ordering::Relaxed) {
                return Some(vec![Event::Wake]);
            }
        }
    }
}

/// Executes the action of a step, or sleeps where there is none. Checks the provisioned input
/// before, if that is due: `checks` meanwhile.
async fn execute(
    executor: &mut Executor,
    timer: &mut Alarm,
    step: &Step,
    sleep: Duration,
    checks: &AtomicBool,
) -> Vec<Event> {
    checks.store(true, Ordering::Relaxed);
    let found = executor.check_provisioning(clock::now()).await;
    checks.store(false, Ordering::Relaxed);
    match (step.action, found) {
        (Some(action), found) => {
            let mut events = found.unwrap_or_default();
            events.extend(executor.execute(action).await);
            events
        }
        (None, Some(mut events)) => {
            events.push(Event::Wake); // what was found is to be shown
            events
        }
        (None, None) => {
            if timer.sleep(sleep).await == Woken::ClockSet {
                tracing::info!("the wall clock was set, or the machine was suspended");
                executor.provisioning.check_soon();
            }
            vec![Event::Wake]
        }
    }
}

/// Waits until this moment; without one, for ever.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
