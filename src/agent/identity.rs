//! Carrying out: the key, the request for an SVID, and its adoption.

use std::sync::Arc;

use rustls::sign::CertifiedKey;

use super::device::{Device, blocking, forget, stored};
use super::failures::{cause, current_key_failure, key_failure, local};
use crate::issuer::{CertificateRequest, IssuerError};
use crate::keys::{self, ErrorKind, Key, KeyError, Provider};
use crate::lifecycle::{Failure, KeyChoice, Meaning, NotAdopted, Report, Request, SvidFacts};
use crate::platform::clock;
use crate::publish::Identity;
use crate::spiffe::svid::{self, Chain, Expectation, SvidError, X509Svid};
use crate::store;
use crate::time::Timestamp;
use crate::transport::ClientIdentity;

impl Device {
    pub(super) async fn create_key(&mut self) -> Result<(), Failure> {
        let keys = self.keys.clone();
        let held = self.identity.as_ref().map(|identity| identity.key.clone());
        let (key, pem) = blocking(move || {
            // While a sealed key is out of reach, none under a lesser seal takes its place (miaf-v0 K2).
            let out_of_reach =
                held.filter(|held| keys.would_make(held.as_ref())).map(|held| held.is_within_reach());
            match out_of_reach {
                Some(Err(e)) if e.kind() != ErrorKind::KeyUnusable => return Err(e),
                _ => {}
            }
            let key = keys.create_key()?;
            let pem = key.to_pem()?;
            Ok((key, pem))
        })
        .await
        .map_err(|e| key_failure(&e))?;
        let pending = store::Pending { key: pem };
        self.save(pending).await.map_err(|e| local("state", "The agent's state cannot be written", &e))?;
        self.pending = Some(key);
        Ok(())
    }

    pub(super) async fn request(&mut self, request: Request, choice: KeyChoice) -> Result<(), Failure> {
        let Some(discovery) = &self.discovery else { return Err(IssuerError::NotDiscovered.to_failure()) };
        let document = discovery.document.clone();
        let key = self.key(choice)?;
        let csr = match blocking(move || keys::csr::certification_request(key.as_ref())).await {
            Ok(csr) => CertificateRequest(csr),
            Err(e) if choice == KeyChoice::Pending && e.kind() == ErrorKind::KeyUnusable => {
                return Err(self.give_up_pending_key(&e).await);
            }
            Err(e) if choice == KeyChoice::Current => return Err(current_key_failure(&e)),
            Err(e) => return Err(key_failure(&e)),
        };
        let may_rename = self.lifecycle.may_be_renamed(clock::now());
        let (answer, credential) = match (request, self.identity.clone()) {
            (Request::Renew, Some(identity)) => {
                let client = self.as_device(&identity).await?;
                let answer = self.issuer.renew(&document, identity.svid.spiffe_id(), &csr, client).await;
                (answer, identity.credential.clone())
            }
            _ => {
                let client = self.factory_credential().await?;
                let credential = self.bootstrap.facts().map(|facts| facts.sha256.clone());
                (self.issuer.enroll(&document, &csr, client).await, credential)
            }
        };
        let answer = store::Answer {
            renewal: request == Request::Renew,
            for_pending_key: choice == KeyChoice::Pending,
            may_rename,
            credential,
            chain: answer.map_err(|e| e.to_failure())?,
        };
        // If it cannot be stored it is lost with this process, and then asked for again with the same key.
        let saved = self.save(answer.clone()).await;
        saved.unwrap_or_else(|e| tracing::error!("the answer of the MIS could not be stored: {}", cause(&e)));
        self.answer = Some(answer);
        Ok(())
    }

    pub(super) async fn prove_key(&self) -> Result<(), Failure> {
        prove(self.key(KeyChoice::Current)?).await
    }

    /// A key that this chip does not know is of no use to anyone, and neither is what was certified for it.
    async fn give_up_pending_key(&mut self, e: &KeyError) -> Failure {
        let (store, keys, why) = (self.store.clone(), self.keys.clone(), e.to_string());
        let one_before = blocking(move || {
            store.set_aside::<store::Pending>(&why);
            // The right chip may be back, and the MIS know the key that was made in it then (E6).
            store.take_back(|record: &store::Pending| {
                let key = keys.key_from_pem(&record.key).map_err(|e| e.to_string())?;
                key.sign(PROBE).map(|_signed| key).map_err(|e| e.to_string())
            })
        });
        self.pending = one_before.await.map(|(key, _)| key);
        match self.pending {
            Some(_) => key_failure(e),
            None => Failure { meaning: Meaning::PendingKeyLost, ..key_failure(e) },
        }
    }

    pub(super) async fn adopt(&mut self, bundle_is_fresh: bool) -> Result<SvidFacts, NotAdopted> {
        let Some(answer) = self.answer.clone() else {
            let why = "it is asked for again";
            return Err(NotAdopted::Refused(local("state", "The answer of the MIS is gone", &why)));
        };
        let Some(kept) = &self.bundle else { return Err(NotAdopted::UnknownIssuer) };
        let choice = if answer.for_pending_key { KeyChoice::Pending } else { KeyChoice::Current };
        let key = self.key(choice).map_err(NotAdopted::Kept)?;
        let held = self.identity.as_ref().filter(|held| !may_rename(&answer, held.credential.as_deref()));
        let held = held.map(|identity| identity.svid.spiffe_id().clone());
        let expected = Expectation {
            trust_domain: kept.bundle.trust_domain(),
            spiffe_id: held.as_ref(),
            spki_der: &key.public_key().spki_der(),
        };
        let now = clock::now().wall;
        // An enrollment is accepted whatever its number: the device may have no other way on.
        let renewed = self.identity.as_ref().filter(|_| answer.renewal);
        let judged = Chain::from_pem(&answer.chain).and_then(|chain| {
            renewed.map_or(Ok(()), |held| svid::check_new_serial(&chain, &held.svid))?;
            svid::validate(&chain, &expected, &kept.bundle, now)
        });
        let svid = match judged {
            Ok(svid) => svid,
            Err(SvidError::NotYetValid { not_before }) => {
                tracing::info!(%not_before, "the new SVID is kept until it becomes valid");
                return Err(NotAdopted::Early(not_before));
            }
            Err(why) if why.depends_on_bundle() && !bundle_is_fresh => {
                return Err(NotAdopted::UnknownIssuer);
            }
            Err(why @ SvidError::IssuerExpired { .. }) => {
                let why = format!(
                    "{why}. It is kept, in case another trust bundle vouches for it, and asked for anew slowly: whoever runs \
                     the MIS has to give it a certificate to issue with that is valid"
                );
                let title = "The issuer of the SVID that the MIS issued has expired";
                return Err(NotAdopted::IssuerExpired(Failure {
                    meaning: Meaning::Slow,
                    retry_after: None,
                    report: Report::of_agent("issuer-expired", title, &why),
                }));
            }
            Err(why) => {
                self.answer = None;
                let store = self.store.clone();
                blocking(move || forget::<store::Answer>(&store)).await;
                let title = "The SVID that the MIS issued is refused";
                let failure = Failure {
                    meaning: Meaning::Slow, // each costs the device one of its few renewals a day (E4)
                    retry_after: None,
                    report: Report::of_agent("svid-refused", title, &why),
                };
                return Err(NotAdopted::Refused(failure));
            }
        };
        self.hold(Identity { svid, key, credential: answer.credential }, choice).await
    }

    /// The moment at which the device's identity changes: one record, certificate and key together.
    async fn hold(&mut self, identity: Identity, choice: KeyChoice) -> Result<SvidFacts, NotAdopted> {
        let facts = svid_facts(&identity.svid, None, choice, fits(&self.keys, &identity.key));
        let identity = Arc::new(identity);
        let record = stored(&identity, None).map_err(|e| NotAdopted::Kept(key_failure(&e)))?;
        self.save(record)
            .await
            .map_err(|e| NotAdopted::Kept(local("state", "The agent's state cannot be written", &e)))?;
        let store = self.store.clone();
        blocking(move || {
            forget::<store::Answer>(&store);
            if choice == KeyChoice::Pending {
                forget::<store::Pending>(&store);
            }
        })
        .await;
        self.answer = None;
        if choice == KeyChoice::Pending {
            self.pending = None;
        }
        self.announce(&identity);
        self.stored_renew_at = None;
        self.identity = Some(identity);
        Ok(facts)
    }

    fn announce(&self, identity: &Identity) {
        let (svid, id) = (&identity.svid, identity.svid.spiffe_id());
        if let Some(before) =
            self.identity.as_ref().map(|held| held.svid.spiffe_id()).filter(|before| *before != id)
        {
            tracing::error!(
                "the MIS gave this device another identity than it had: {id} in place of {before}"
            );
        }
        if !id.device_uuid_is_v4() {
            tracing::warn!("the UUID in the identity {id} is not of version 4, which the MIS should see to");
        }
        let (until, leaf_until) = (svid.until(), svid.not_after());
        tracing::info!(
            spiffe_id = %id, serial = svid.serial(), not_before = %svid.not_before(), not_after = %until,
            key_protection = identity.key.protection().as_str(), "new SVID"
        );
        if until < leaf_until {
            tracing::warn!(
                "an issuer of the new SVID ends at {until}, before the SVID itself at {leaf_until}: it cannot be used longer \
                 than that. The MIS should issue with a certificate that outlives what it issues"
            );
        }
    }

    fn key(&self, choice: KeyChoice) -> Result<Arc<dyn Key>, Failure> {
        let key = match choice {
            KeyChoice::Pending => self.pending.clone(),
            KeyChoice::Current => self.identity.as_ref().map(|identity| identity.key.clone()),
        };
        key.ok_or_else(|| local("state", "The key is gone", &"the agent's state was changed under it"))
    }

    /// The device as itself: its SVID, with the complete chain (miaf-v0 E3, R1).
    async fn as_device(&self, identity: &Identity) -> Result<ClientIdentity, Failure> {
        let key = identity.key.clone();
        // Within a handshake a chip that was replaced or cleared would look like a network that is down.
        prove(key.clone()).await?;
        let key = keys::tls::signing_key(key);
        let chain = identity.svid.chain().certificates().to_vec();
        ClientIdentity::new(CertifiedKey::new(chain, key))
            .map_err(|e| local("key", "The key that is held is not the one of the SVID that is held", &e))
    }
}

/// Whether the answer may name another identity than the one held (miaf-v0 E9, R3).
fn may_rename(answer: &store::Answer, enrolled_with: Option<&str>) -> bool {
    let other_credential = match (answer.credential.as_deref(), enrolled_with) {
        (Some(shown), Some(enrolled_with)) => shown != enrolled_with,
        _ => false,
    };
    !answer.renewal && (answer.may_rename || other_credential)
}

/// Signed to see whether a key can.
const PROBE: &[u8] = b"miaf-agent: can this key still sign?";

/// Has the key of the SVID that is held sign something.
async fn prove(key: Arc<dyn Key>) -> Result<(), Failure> {
    let signed = blocking(move || key.sign(PROBE)).await;
    signed.map(drop).map_err(|e| current_key_failure(&e))
}

pub(super) fn svid_facts(
    svid: &X509Svid,
    renew_at: Option<Timestamp>,
    key: KeyChoice,
    key_fits: bool,
) -> SvidFacts {
    SvidFacts { not_before: svid.not_before(), not_after: svid.until(), renew_at, key, key_fits }
}

/// Whether a key is of the configured kind. One that is not is used for what it is bound to already, and no longer.
pub(super) fn fits(keys: &Provider, key: &Arc<dyn Key>) -> bool {
    let fits = keys.would_make(key.as_ref());
    if !fits {
        let protection = key.protection().as_str();
        tracing::warn!(
            protection,
            "a key is held that is not of the configured provider; it is replaced by renewal"
        );
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules R3 and E9: what the MIS may call the device.
    #[test]
    fn another_identity_is_acceptable_after_expiry_or_a_401_or_with_another_factory_certificate_and_never_at_renewal()
     {
        let one = || Some("ab12".to_owned());
        let other = || Some("cd34".to_owned());
        for (renewal, may_be_renamed, shown, enrolled_with, expected) in [
            (false, false, one(), one(), false),
            (false, true, one(), one(), true),
            (false, false, other(), one(), true),
            (false, false, other(), None, false), // nobody knows what it was enrolled with
            (false, false, None, one(), false),
            (true, true, other(), one(), false),
            (true, false, one(), one(), false),
        ] {
            let chain = Vec::new();
            let answer = store::Answer {
                renewal,
                for_pending_key: true,
                may_rename: may_be_renamed,
                credential: shown,
                chain,
            };
            assert_eq!(
                may_rename(&answer, enrolled_with.as_deref()),
                expected,
                "{answer:?} {enrolled_with:?}"
            );
        }
    }
}
