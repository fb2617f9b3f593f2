//! The operator's orders: which of them are taken, and carrying them out. They are answered at once, also while an action is
//! under way, and wait for its end: it is never dropped half-way.

use std::collections::VecDeque;

use super::Place;
use super::device::{Device, blocking};
use super::failures::cause;
use crate::config::Config;
use crate::factory_credential::Purpose;
use crate::hint::Hint as _;
use crate::lifecycle::{self, Event};
use crate::platform::clock;
use crate::server::admin::{Given, Order, Refusal};

/// Orders that wait at once for an action to end.
const MOST_WAITING: usize = 4;

/// Orders that were taken and are not carried out yet. They outlive a change of the configuration.
#[derive(Debug, Default)]
pub(super) struct Taken(VecDeque<Order>);

/// What decides whether an order makes sense.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) has_identity: bool,
    /// An action is under way.
    pub(super) is_busy: bool,
}

impl Taken {
    /// Answers an order, and keeps it if it is taken.
    pub(super) fn take(&mut self, given: Given, standing: Standing, place: &Place) {
        let order = given.order;
        if self.0.len() >= MOST_WAITING {
            return given.refuse(Refusal::Busy);
        }
        if let Some(why) = senseless(order, standing, place) {
            return given.refuse(Refusal::Senseless(why));
        }
        let begins = if standing.is_busy { " It begins when what the agent is doing has ended." } else { "" };
        if given.accept(format!("{}{begins}", outlook(order))) {
            self.0.push_back(order);
        } else {
            tracing::info!(
                "nobody waits for an answer any more, and the order is not taken: {}",
                order.as_str()
            );
        }
    }

    pub(super) fn next(&mut self) -> Option<Order> {
        self.0.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Answers an order for which there is no device.
pub(super) fn refuse(given: Given, why: &str) {
    given.refuse(Refusal::Senseless(why.to_owned()));
}

fn senseless(order: Order, standing: Standing, place: &Place) -> Option<String> {
    match order {
        Order::Renew if !standing.has_identity => Some(
            "This device has no identity yet that could be renewed. Its status says what it is waiting for; a retry has \
             it try again now."
                .to_owned(),
        ),
        Order::ResetIdentity if !standing.has_identity => Some(
            "This device has no identity, so there is none to leave: it already follows its configuration.".to_owned(),
        ),
        // It would go on under the configuration before, back into the trust domain that it is to leave.
        Order::ResetIdentity => place
            .load()
            .err()
            .map(|e| format!("The device would go on under its configuration, which cannot be used: {}. Correct it first.", e.with_hint())),
        Order::Retry { .. } | Order::Renew => None,
    }
}

fn outlook(order: Order) -> &'static str {
    match order {
        Order::Retry { new_key: false } => {
            "What was refused or is being waited for is tried again within seconds, as far as the MIS has not asked to be left alone."
        }
        Order::Retry { new_key: true } => {
            "If the device's key is lost, the device enrolls with a new one, as far as the MIS has not asked to be left alone. \
             A key that works is kept."
        }
        Order::Renew => {
            "The identity is renewed now, as far as the MIS has not asked to be left alone and nothing else stands in the \
             way."
        }
        Order::ResetIdentity => {
            "The device leaves its identity, which is kept aside in the state folder, withdraws what it has published, and \
             goes on as a new one under its configuration."
        }
    }
}

impl Device {
    /// Has an order taken in. An action that is decided on already is carried out all the same.
    pub(super) fn order(&mut self, order: Order) -> Event {
        tracing::info!("an operator's order is carried out: {}", order.as_str());
        if matches!(order, Order::Retry { .. }) {
            // What was provisioned may be what has been corrected.
            self.look_again_at = clock::now().boot;
            self.look_for = Purpose::Use;
            // The one that has been seen: of another that goes back later nobody has spoken.
            self.accepts_regressed_bundle =
                self.bundle.as_ref().is_some_and(|kept| kept.cached.regressed_since.is_some());
        }
        match order {
            Order::Retry { new_key: false } => Event::Told(lifecycle::Order::Retry),
            Order::Retry { new_key: true } => Event::Told(lifecycle::Order::ReplaceKey),
            Order::Renew => Event::Told(lifecycle::Order::Renew),
            Order::ResetIdentity => Event::Wake, // see leave_identity
        }
    }

    /// Leaves the identity on the operator's order. Returns the configuration to go on under, from what is then on the
    /// disk: without an identity or, where it could not be put aside, with it.
    ///
    /// What is published goes first, durably. After a power cut a device that has its identity publishes it anew; one that
    /// has put it aside never finds it published, and [`Store::retire`](crate::state::Store::retire) leaves nothing to be
    /// finished. Waits that an MIS asked for are kept (miaf-v0 E8).
    pub(super) async fn leave_identity(&mut self, place: &Place) -> Config {
        let Some(identity) = self.identity.clone() else {
            tracing::info!("there is no identity any more that could be left");
            return self.config.clone();
        };
        // It was good when the order was taken. Back into the trust domain that it leaves is no way to go on.
        let next = match place.load() {
            Ok(config) => config,
            Err(e) => {
                tracing::error!(
                    "{}. The order to leave the identity is not carried out: it stays",
                    e.with_hint()
                );
                return self.config.clone();
            }
        };
        let (mut publisher, store) = (self.publisher.clone(), self.store.clone());
        let left = blocking(move || {
            publisher.withdraw().map_err(|e| e.to_string())?;
            store.retire().map_err(|e| e.with_hint().to_string())
        });
        let spiffe_id = identity.svid.spiffe_id();
        match left.await {
            Ok(folder) => {
                tracing::warn!(
                    %spiffe_id, kept_in = %folder.display(),
                    "on the operator's order this device has left its identity and the trust domain \"{}\", and goes on \
                     as a new one",
                    spiffe_id.trust_domain()
                );
                next
            }
            Err(why) => {
                let why = cause(&why);
                tracing::error!(%spiffe_id, "the order to leave this identity could not be carried out, and it stays: {why}");
                self.config.clone()
            }
        }
    }
}
