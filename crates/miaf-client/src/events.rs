//! Subscription to changes: server-sent events (WHATWG HTML, section 9.2).

use std::time::Instant;

use super::connection::{MAX_RESPONSE, Response};
use super::{ClientError, read};
use crate::api::StateEvent;

/// The state at every change. Blocks until the next; ends when the agent ends: subscribe again
/// then.
#[derive(Debug)]
pub struct Watch {
    response: Response,
    has_ended: bool,
}

impl Watch {
    pub(super) fn of(response: Response) -> Self {
        Self { response, has_ended: false }
    }

    /// As [`next`](Iterator::next), with a moment at which it gives up: with an error, and no
    /// further events.
    pub fn next_before(&mut self, until: Option<Instant>) -> Option<Result<StateEvent, ClientError>> {
        if self.has_ended {
            return None;
        }
        let next = self.read_event(until).transpose();
        self.has_ended = !matches!(next, Some(Ok(_)));
        next
    }

    fn read_event(&mut self, until: Option<Instant>) -> Result<Option<StateEvent>, ClientError> {
        self.response.read_until(until);
        let (mut event, mut data, mut left) = (String::new(), String::new(), MAX_RESPONSE);
        while let Some(line) = self.response.line(&mut left)? {
            match line.split_once(':').map(|(field, value)| (field, value.strip_prefix(' ').unwrap_or(value)))
            {
                Some(("event", name)) => event = name.to_owned(),
                Some(("data", more)) => data.push_str(more), // JSON does not mind line breaks
                None if line.is_empty() && event == "state" => return read(data.as_bytes()).map(Some),
                // Events of other kinds are for newer clients.
                None if line.is_empty() => (event, data, left) = (String::new(), String::new(), MAX_RESPONSE),
                _ => {}
            }
        }
        Ok(None)
    }
}

impl Iterator for Watch {
    type Item = Result<StateEvent, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_before(None)
    }
}
