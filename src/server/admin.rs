//! The operator's orders to a running agent, and their way from the administration socket to the agent's loop.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::json;
use crate::spiffe::TrustDomain;

/// Orders under way to the loop at once. An operator gives one.
const MOST_UNDER_WAY: usize = 4;
/// The loop hears an order within this time, or it is not taken.
const HEARD_WITHIN: Duration = Duration::from_secs(10);

/// What an operator can order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Try again now what was refused or is being waited for, as far as the MIS has not asked to be left alone
    /// (miaf-v0 P2, E8); accept the trust bundle that is served (miaf-v0 B5); take this device's clock as right.
    Retry {
        /// The key is lost: enroll with a new one.
        new_key: bool,
    },
    /// Renew the identity now.
    Renew,
    /// Leave the trust domain: put identity, keys and documents aside, withdraw what was published, and go on as a new
    /// device under the configuration.
    ResetIdentity,
}

impl Order {
    /// As on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry { new_key: false } => "retry",
            Self::Retry { new_key: true } => "retry --new-key",
            Self::Renew => "renew",
            Self::ResetIdentity => "reset-identity",
        }
    }
}

/// `202`: the order is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Always true: for programs that look at the body only.
    pub accepted: bool,
    /// What will happen, as a sentence.
    pub detail: String,
}

/// Why an order is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It makes no sense as things stand; and what to do.
    Senseless(String),
    /// Enough orders wait already, or the agent cannot hear it now.
    Busy,
}

/// An order on its way, with the caller who waits for the answer.
#[derive(Debug)]
pub struct Given {
    /// What is ordered.
    pub order: Order,
    caller: oneshot::Sender<Result<String, Refusal>>,
}

impl Given {
    /// Tells the caller that it is taken and what will happen. `false`: nobody waits any more, and whoever gave it
    /// believes that it was not taken.
    #[must_use]
    pub fn accept(self, detail: String) -> bool {
        self.caller.send(Ok(detail)).is_ok()
    }

    /// Tells the caller that it is not taken.
    pub fn refuse(self, why: Refusal) {
        let _ = self.caller.send(Err(why)); // who has gone needs no answer
    }
}

/// The way to the agent's loop.
#[derive(Clone, Debug)]
pub struct Orders(mpsc::Sender<Given>);

impl Orders {
    /// A way, and its end at the loop.
    pub fn channel() -> (Self, mpsc::Receiver<Given>) {
        let (to_loop, at_loop) = mpsc::channel(MOST_UNDER_WAY);
        (Self(to_loop), at_loop)
    }

    /// Gives an order and waits until the loop has taken it, not until it is carried out. Says what will happen.
    ///
    /// # Errors
    /// [`Refusal`]; nothing happens then.
    pub async fn give(&self, order: Order) -> Result<String, Refusal> {
        let (caller, answer) = oneshot::channel();
        self.0.try_send(Given { order, caller }).map_err(|_| Refusal::Busy)?;
        match timeout(HEARD_WITHIN, answer).await {
            Ok(Ok(answer)) => answer,
            _ => Err(Refusal::Busy), // the agent is about to end, or hangs
        }
    }
}

/// The address of an order on the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// `/v1/retry`
    Retry,
    /// `/v1/renew`
    Renew,
    /// `/v1/reset-identity`
    ResetIdentity,
}

/// An order as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) order: Order,
    /// The trust domain that the caller means to leave.
    pub(super) leaves: Option<TrustDomain>,
}

impl Address {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Retry, Self::Renew, Self::ResetIdentity];

    /// Its path.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "/v1/retry",
            Self::Renew => "/v1/renew",
            Self::ResetIdentity => "/v1/reset-identity",
        }
    }

    /// What is ordered there, as on the command line.
    pub(super) fn order(self) -> &'static str {
        self.as_str().trim_start_matches("/v1/")
    }

    /// The one with this path.
    pub(super) fn of(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|address| address.as_str() == path)
    }

    /// The order that a body means here, or a sentence that says what is allowed.
    pub(super) fn read(self, body: &[u8]) -> Result<Asked, String> {
        let asked = |order| Asked { order, leaves: None };
        match self {
            Self::Retry if body.is_empty() => Ok(asked(Order::Retry { new_key: false })),
            Self::Retry => object(body, "be empty, or {\"newKey\": true}")
                .map(|RetryBody { new_key }| asked(Order::Retry { new_key })),
            Self::Renew if body.is_empty() => Ok(asked(Order::Renew)),
            Self::Renew => object(body, "be empty").map(|Nothing {}| asked(Order::Renew)),
            Self::ResetIdentity => object(
                body,
                "name the trust domain that is to be left: {\"trustDomain\": \"factory.example\"}",
            )
            .map(|ResetBody { trust_domain }| Asked {
                order: Order::ResetIdentity,
                leaves: Some(trust_domain),
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
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ResetBody {
    trust_domain: TrustDomain,
}

fn object<T: DeserializeOwned>(body: &[u8], must: &str) -> Result<T, String> {
    json::read(body).map_err(|e| format!("The body must {must}. This one: {e}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_means_one_order_or_is_refused_with_what_is_allowed() {
        let order = |address: Address, body: &str| address.read(body.as_bytes()).map(|asked| asked.order);
        for (body, new_key) in
            [("", false), ("{}", false), ("{\"newKey\":false}", false), ("{\"newKey\": true}", true)]
        {
            assert_eq!(order(Address::Retry, body), Ok(Order::Retry { new_key }), "{body:?}");
        }
        for body in ["", "{}"] {
            assert_eq!(order(Address::Renew, body), Ok(Order::Renew));
        }
        // As everywhere (RFC 8259 section 8.1).
        assert_eq!(order(Address::Renew, "\u{feff}{}"), Ok(Order::Renew));
        assert_eq!(order(Address::Retry, "\u{feff}{\"newKey\":true}"), Ok(Order::Retry { new_key: true }));
        let asked = Address::ResetIdentity.read(b"{\"trustDomain\":\"factory.example\"}").unwrap();
        assert_eq!(asked.order, Order::ResetIdentity);
        assert_eq!(asked.leaves, Some(TrustDomain::parse("factory.example").unwrap()));
        for (address, bodies, allowed) in [
            (
                Address::Retry,
                &["null", "[true]", "true", "{\"newKey\":1}", "{\"newKey\":null}", "{\"new_key\":true}", " "]
                    [..],
                "be empty, or {\"newKey\": true}",
            ),
            (Address::Renew, &["[]", "{\"newKey\":true}", "x"], "be empty"),
            (
                Address::ResetIdentity,
                &["", "{}", "[\"a\"]", "{\"trustDomain\":5}", "{\"trustDomain\":\"No Domain\"}"],
                "name the trust domain that is to be left",
            ),
        ] {
            for body in bodies {
                let refused = order(address, body).unwrap_err();
                assert!(refused.contains(allowed), "{body:?}: {refused}");
            }
        }
        let twice = order(Address::Retry, "{\"newKey\":true,\"newKey\":true}").unwrap_err();
        assert!(twice.contains("duplicate"), "{twice}");
    }

    #[tokio::test]
    async fn an_order_that_nobody_hears_is_not_taken() {
        let (orders, at_loop) = Orders::channel();
        drop(at_loop);
        assert_eq!(orders.give(Order::Renew).await, Err(Refusal::Busy));

        let (orders, mut at_loop) = Orders::channel();
        let waiting: Vec<_> = (0..MOST_UNDER_WAY)
            .map(|_| {
                tokio::spawn({
                    let orders = orders.clone();
                    async move { orders.give(Order::Renew).await }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(orders.give(Order::Renew).await, Err(Refusal::Busy), "too many");
        let mut waiting = waiting.into_iter();
        assert!(at_loop.recv().await.unwrap().accept("it happens".into()));
        assert_eq!(waiting.next().unwrap().await.unwrap(), Ok("it happens".into()));
        waiting.next().unwrap().abort();
        tokio::task::yield_now().await;
        assert!(!at_loop.recv().await.unwrap().accept(String::new()), "its caller has gone");
    }
}
