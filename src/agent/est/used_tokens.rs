//! Enrollment tokens that have been used, and how each went (X44): a token that is spent, or that the
//! MIS has refused too often, is not sent again after a restart either.

use crate::issuer::EnrollmentToken;
use crate::state::{MAX_TOKENS, StoredTokens, TokenRecord};
use miaf_spiffe::digest::Hex;
use miaf_spiffe::time::Timestamp;

/// How often one token is sent that the MIS refuses: a replica may not know it yet, and more would
/// look like guessing.
pub(super) const MOST_REFUSALS: u32 = 5;

/// What may be done with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may be sent.
    Usable,
    /// An SVID was issued for it.
    Spent,
    /// The MIS has refused it too often.
    Refused,
    /// An operator has handed over another one in its place.
    Superseded,
}

/// The tokens of one identity, each by a salted hash.
#[derive(Clone, Debug, Default)]
pub(super) struct UsedTokens(StoredTokens);

impl UsedTokens {
    pub(super) fn restored(stored: StoredTokens) -> Self {
        Self(stored)
    }

    /// As they are stored.
    pub(super) fn stored(&self) -> &StoredTokens {
        &self.0
    }

    /// What may be done with a token.
    pub(super) fn standing(&self, token: &EnrollmentToken) -> Standing {
        let Some(salt) = self.0.salt else { return Standing::Usable };
        let sha256 = hash(token, &salt);
        match self.0.tokens.iter().find(|known| known.sha256 == sha256) {
            Some(TokenRecord { spent: true, .. }) => Standing::Spent,
            Some(TokenRecord { refused, .. }) if *refused >= MOST_REFUSALS => Standing::Refused,
            Some(TokenRecord { superseded: true, .. }) => Standing::Superseded,
            _ => Standing::Usable,
        }
    }

    /// Whether an operator has handed over another one in its place, whatever else became of it.
    pub(super) fn is_superseded(&self, token: &EnrollmentToken) -> bool {
        let Some(salt) = self.0.salt else { return false };
        let sha256 = hash(token, &salt);
        self.0.tokens.iter().any(|known| known.sha256 == sha256 && known.superseded)
    }

    /// Remembers a refusal. Returns how many there were of this token. `salt` is for the first record.
    pub(super) fn refused(&mut self, token: &EnrollmentToken, salt: [u8; 16], at: Timestamp) -> u32 {
        let refused = |record: &mut TokenRecord| {
            record.refused = record.refused.saturating_add(1);
            record.refused_at = Some(at);
        };
        self.record(token, salt, refused).refused
    }

    /// How often the MIS has refused a token, and when last. `None`: never.
    pub(super) fn refusals(&self, token: &EnrollmentToken) -> Option<(u32, Timestamp)> {
        let sha256 = hash(token, &self.0.salt?);
        let known = self.0.tokens.iter().find(|known| known.sha256 == sha256)?;
        Some((known.refused, known.refused_at?)).filter(|(refused, _)| *refused > 0)
    }

    /// Remembers that an SVID was issued for a token.
    pub(super) fn spent(&mut self, token: &EnrollmentToken, salt: [u8; 16]) {
        self.record(token, salt, |record| record.spent = true);
    }

    /// Remembers that another one was handed over in the place of `token`, if there was one. Returns
    /// whether anything changes.
    pub(super) fn supersede(
        &mut self,
        token: Option<&EnrollmentToken>,
        by: &EnrollmentToken,
        salt: [u8; 16],
    ) -> bool {
        let before = self.0.clone();
        if self.standing(by) == Standing::Superseded {
            self.record(by, salt, |record| record.superseded = false);
        }
        if let Some(token) = token.filter(|token| token.expose() != by.expose()) {
            self.record(token, salt, |record| record.superseded = true);
        }
        self.0 != before
    }

    /// Forgets the refusals: an operator may have had them corrected. Returns whether there were any.
    pub(super) fn forgive(&mut self) -> bool {
        let before = self.0.tokens.clone();
        self.0.tokens.retain(|token| token.spent || token.superseded);
        self.0.tokens.iter_mut().for_each(|token| (token.refused, token.refused_at) = (0, None));
        self.0.tokens != before
    }

    /// Changes the record of a token, which is the latest of all from now on.
    fn record(
        &mut self,
        token: &EnrollmentToken,
        salt: [u8; 16],
        change: impl FnOnce(&mut TokenRecord),
    ) -> TokenRecord {
        let StoredTokens { salt: known_salt, tokens } = &mut self.0;
        let sha256 = hash(token, known_salt.get_or_insert(salt));
        let known = tokens.iter().position(|known| known.sha256 == sha256).map(|nth| tokens.remove(nth));
        let beyond = (tokens.len() + 1).saturating_sub(MAX_TOKENS);
        tokens.drain(..beyond);
        let mut record = known.unwrap_or(TokenRecord {
            sha256,
            refused: 0,
            refused_at: None,
            spent: false,
            superseded: false,
        });
        change(&mut record);
        tokens.push(record.clone());
        record
    }
}

fn hash(token: &EnrollmentToken, salt: &[u8; 16]) -> String {
    Hex(&token.hash(salt)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: [u8; 16] = [7; 16];
    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn token(text: &str) -> EnrollmentToken {
        EnrollmentToken::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn token_that_was_used_is_not_sent_again() {
        let (one, other) = (token("line-7:one"), token("line-7:other"));
        let mut used = UsedTokens::default();
        assert_eq!(used.standing(&one), Standing::Usable);
        used.spent(&one, SALT);
        assert_eq!((used.standing(&one), used.standing(&other)), (Standing::Spent, Standing::Usable));
        assert!(!used.forgive(), "a spent token stays spent");
        assert_eq!(used.standing(&one), Standing::Spent);
    }

    #[test]
    fn token_is_refused_five_times_and_no_more() {
        let (one, other) = (token("a:one"), token("a:other"));
        let mut used = UsedTokens::default();
        for times in 1..=MOST_REFUSALS {
            assert_eq!(used.standing(&one), Standing::Usable);
            assert_eq!(used.refused(&one, [times as u8; 16], NOW), times, "the first salt stays");
        }
        assert_eq!((used.standing(&one), used.standing(&other)), (Standing::Refused, Standing::Usable));
        // Another one in between changes nothing.
        used.refused(&other, SALT, NOW);
        assert_eq!(used.refusals(&one), Some((MOST_REFUSALS, NOW)));
        assert_eq!(used.standing(&one), Standing::Refused);
        assert!(used.forgive());
        assert_eq!(used.refusals(&one), None);
        assert_eq!(used.standing(&one), Standing::Usable);
    }

    #[test]
    fn superseded_token_counts_again_when_it_is_handed_over() {
        let (in_file, by_hand) = (token("a:in-file"), token("a:by-hand"));
        let mut used = UsedTokens::default();
        assert!(!used.supersede(None, &by_hand, SALT), "there was none");
        assert!(used.supersede(Some(&in_file), &by_hand, SALT));
        assert_eq!(
            (used.standing(&in_file), used.standing(&by_hand)),
            (Standing::Superseded, Standing::Usable)
        );
        assert!(!used.forgive(), "to try again is no word about the one before");
        assert_eq!(used.standing(&in_file), Standing::Superseded);
        assert!(!used.supersede(Some(&by_hand), &by_hand, SALT), "the same one once more");
        assert!(used.supersede(Some(&by_hand), &in_file, SALT));
        assert_eq!(
            (used.standing(&in_file), used.standing(&by_hand)),
            (Standing::Usable, Standing::Superseded)
        );
    }

    #[test]
    fn record_is_bounded_and_shows_no_token() {
        let mut used = UsedTokens::default();
        for nth in 0..3 * MAX_TOKENS {
            used.spent(&token(&format!("user:secret-{nth}")), SALT);
        }
        assert_eq!(used.stored().tokens.len(), MAX_TOKENS);
        let last = token(&format!("user:secret-{}", 3 * MAX_TOKENS - 1));
        assert_eq!(used.standing(&last), Standing::Spent);
        let stored = serde_json::to_string(used.stored()).unwrap();
        assert!(!stored.contains("secret") && !stored.contains("user"), "{stored}");
    }
}
