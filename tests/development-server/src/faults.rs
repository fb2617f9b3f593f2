//! Faults waiting to take effect, by endpoint.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// A queue of faults `F` for each endpoint `E`: one-shot ones in order first, then the sticky one.
#[derive(Debug)]
pub struct Faults<E, F> {
    once: HashMap<E, VecDeque<F>>,
    sticky: HashMap<E, F>,
}

impl<E, F> Default for Faults<E, F> {
    fn default() -> Self {
        Self { once: HashMap::new(), sticky: HashMap::new() }
    }
}

impl<E: Eq + Hash, F: Clone> Faults<E, F> {
    /// For the next request to this endpoint that has no fault yet.
    pub fn once(&mut self, endpoint: E, fault: F) {
        self.once.entry(endpoint).or_default().push_back(fault);
    }

    /// For every request to this endpoint until cleared.
    pub fn sticky(&mut self, endpoint: E, fault: F) {
        self.sticky.insert(endpoint, fault);
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// One-shot faults that have not taken effect yet.
    pub fn waiting(&self) -> usize {
        self.once.values().map(VecDeque::len).sum()
    }

    /// The fault of one request.
    pub fn take(&mut self, endpoint: &E) -> Option<F> {
        let next = self.once.get_mut(endpoint).and_then(VecDeque::pop_front);
        next.or_else(|| self.sticky.get(endpoint).cloned())
    }
}
