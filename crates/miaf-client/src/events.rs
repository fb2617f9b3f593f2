//! What changes, as server-sent events (WHATWG HTML, section 9.2).

use std::time::Instant;

use super::connection::{Answer, MAX_ANSWER};
use super::{ClientError, read};
use crate::api::StateEvent;

/// The state at every change. Waits for the next as long as it takes; ends when the agent does: watch again then.
#[derive(Debug)]
pub struct Watch {
    answer: Answer,
    has_ended: bool,
}

impl Watch {
    pub(super) fn of(answer: Answer) -> Self {
        Self { answer, has_ended: false }
    }

    /// As [`next`](Iterator::next), and silent by then: after that it is of no use any more.
    pub fn next_before(&mut self, until: Option<Instant>) -> Option<Result<StateEvent, ClientError>> {
        if self.has_ended {
            return None;
        }
        let next = self.read_event(until).transpose();
        self.has_ended = !matches!(next, Some(Ok(_)));
        next
    }

    fn read_event(&mut self, until: Option<Instant>) -> Result<Option<StateEvent>, ClientError> {
        self.answer.read_until(until);
        let (mut event, mut data, mut left) = (String::new(), String::new(), MAX_ANSWER);
        while let Some(line) = self.answer.line(&mut left)? {
            match line.split_once(':').map(|(field, value)| (field, value.strip_prefix(' ').unwrap_or(value)))
            {
                Some(("event", name)) => event = name.to_owned(),
                Some(("data", more)) => data.push_str(more), // JSON: where its lines end is the same to it
                None if line.is_empty() && event == "state" => return read(data.as_bytes()).map(Some),
                // What else there may be one day is not for this client.
                None if line.is_empty() => (event, data, left) = (String::new(), String::new(), MAX_ANSWER),
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
