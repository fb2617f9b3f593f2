//! The MIS itself, without a network: requests in, decisions out, in the order that the SUP gives.

use crate::binding::{self, Binding, Used};
use crate::clients::{self, Chain};
use crate::csr::CsrKey;
use crate::documents::{self, Validators};
use crate::est::{Est, State};
use crate::faults::{Active, Endpoint, Faults};
use crate::issue::LeafSpec;
use crate::journal::{Entry, Journal};
use crate::names::Name;
use crate::pem;
use crate::pki::Pki;
use crate::policy::{Admission, Policy, esi};
use crate::registry::{Issuance, Occasion, Registry};
use crate::wire::{self, BINDING_METHOD, Enrollment, IDENTITIES_PATH, Problem, Renewal};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use development_server::{Error, Result, lock};
use hyper::StatusCode;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::Mutex;

/// A body and its status.
pub type Answer = (StatusCode, Vec<u8>);

/// A refusal is a response to the client; an error is this server's own.
enum Failure {
    Refused(Problem),
    Broken(Error),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

/// The server's whole state.
pub struct Service {
    /// The Trust Domain.
    pub trust_domain: String,
    /// The server's origin, `https://host:port`.
    pub base: String,
    /// The operator's decisions.
    pub policy: Mutex<Policy>,
    /// Authorities.
    pub pki: Mutex<Pki>,
    /// Devices.
    pub registry: Mutex<Registry>,
    /// Binding assertions that were used.
    pub used: Mutex<Used>,
    /// What to do wrong.
    pub faults: Mutex<Faults>,
    /// EST: authorizations and the issuance record.
    pub est: Mutex<State>,
    /// The request.
    pub journal: Journal,
    /// Validators of the documents served last.
    pub served: Mutex<HashMap<Endpoint, Validators>>,
}

impl Service {
    /// A public document and its validators.
    pub fn document(&self, endpoint: Endpoint, faults: &Active) -> Result<(Vec<u8>, Validators)> {
        let policy = lock(&self.policy).clone();
        let document = match endpoint {
            Endpoint::Bundle => documents::bundle(&self.trust_domain, &lock(&self.pki), &policy)?,
            _ => documents::discovery(&self.trust_domain, &self.base, &Est(self).url(), &policy),
        };
        let body = faults.render(endpoint, &self.trust_domain, document);
        let mut served = lock(&self.served);
        let validators = Validators::of(&body, served.get(&endpoint));
        served.insert(endpoint, validators.clone());
        Ok((body, validators))
    }

    /// `POST /api/v1/identities`.
    pub fn enroll(
        &self,
        client: &Chain,
        body: &[u8],
        faults: &Active,
        entry: &mut Entry,
    ) -> std::result::Result<Answer, Problem> {
        self.try_enroll(client, body, faults, entry).map_err(refusal)
    }

    /// `POST /api/v1/identities/{encoded}/renewal`.
    pub fn renew(
        &self,
        client: &Chain,
        encoded: &str,
        body: &[u8],
        faults: &Active,
        entry: &mut Entry,
    ) -> std::result::Result<Answer, Problem> {
        self.try_renew(client, encoded, body, faults, entry).map_err(refusal)
    }

    fn try_enroll(
        &self,
        client: &Chain,
        body: &[u8],
        faults: &Active,
        entry: &mut Entry,
    ) -> std::result::Result<Answer, Failure> {
        let policy = lock(&self.policy).clone();

        // Before the SUP's first step: a body with these members and no others.
        let (request, credential) = Enrollment::parse(body)?;

        // 1. The bootstrap proof, by the rules of the method.
        if !policy.knows_method(&credential.method) {
            return Err(Problem::unsupported_method(format!(
                "bootstrap method {:?} is not offered",
                credential.method
            ))
            .into());
        }
        let leaf = client.first().ok_or_else(|| Problem::invalid_proof("no client certificate"))?;
        let binding = if credential.method == BINDING_METHOD {
            Some(self.binding(client, &credential.binding_assertion()?, &policy)?)
        } else {
            if credential.proof.is_some() {
                return Err(Problem::invalid_proof(
                    "this method has no proof in the body: the client certificate is the proof",
                )
                .into());
            }
            clients::judge_factory(client, lock(&self.pki).factory_anchors())
                .map_err(Problem::invalid_proof)?;
            None
        };

        // 2. The Enrollment Subject Identifier (E5, W5).
        let esi = binding.as_ref().map_or_else(|| esi(leaf), Binding::esi);

        // 3. The profile, and the request as the profile demands.
        let key = read_request(&policy, &request.svid_profile_uri, request.svid_request.as_deref())?;
        if binding.is_some() && key.spki == crate::x509::spki_of(leaf)? {
            return Err(Problem::invalid_request(
                "csr: the key is the device's: a WFM Client has a key of its own",
            )
            .into());
        }
        let key_sha256 = key.digest();

        // 4. The binding.
        let mut registry = lock(&self.registry);
        let (status, ldi, rotated) = match registry.by_esi(&esi) {
            None => {
                if let (Admission::Pending { retry_after, admitted, after }, None) =
                    (&policy.admission, &binding)
                {
                    let waiting = registry.waiting_since(&esi);
                    if !admitted.contains(&esi) && after.is_none_or(|after| waiting < after) {
                        return Err(Problem::pending(*retry_after).into());
                    }
                }
                let id = match &binding {
                    Some(binding) => binding.spiffe_id(&self.trust_domain),
                    None => {
                        format!("spiffe://{}/margo/device/{}", self.trust_domain, wire::random_uuid()?)
                    }
                };
                (StatusCode::CREATED, id, false)
            }
            Some(identity) => {
                let rotated = identity.key_sha256 != key_sha256;
                if rotated && !policy.rotation_at_enrollment {
                    return Err(Problem::rotation_refused("this identity is bound to another key").into());
                }
                let occasion = Occasion::Enrollment;
                if let Some(wait) = identity.over(policy.enrollment_limit, occasion) {
                    return Err(Problem::too_many(wait).into());
                }
                (StatusCode::OK, identity.ldi.clone(), rotated)
            }
        };
        let issuance = Issuance {
            esi: &esi,
            ldi: &ldi,
            key_sha256: &key_sha256,
            occasion: Occasion::Enrollment,
            // "If permitted, issue a new SVID and invalidate the prior SVID."
            invalidates_earlier: rotated,
        };
        let answer = self.issue(&mut registry, &policy, faults, entry, &key, &issuance)?;
        Ok((status, answer))
    }

    /// Verifies the proof of the binding method: a current device SVID on the connection, and an
    /// assertion that was not used before (W3, W5). It is used up by this, whatever comes of the
    /// request: a client gets a new one for each.
    fn binding(
        &self,
        client: &Chain,
        assertion: &str,
        policy: &Policy,
    ) -> std::result::Result<Binding, Failure> {
        let refuse = |why: &str| Problem::invalid_proof(format!("client certificate: {why}"));
        let anchors = lock(&self.pki).anchors();
        let device = clients::judge_svid(client, &anchors, &self.trust_domain).map_err(|why| refuse(&why))?;
        if Name::parse(&device, &self.trust_domain) != Some(Name::Device) {
            return Err(refuse(&format!("{device} is not a device")).into());
        }
        let leaf = client.first().ok_or_else(|| refuse("none"))?;
        if !lock(&self.registry).by_ldi(&device).is_some_and(|one| one.accepts(leaf)) {
            return Err(refuse("this SVID is no longer good").into());
        }
        let now = binding::unix_now();
        let binding = binding::verify(
            assertion,
            &binding::Expected {
                anchors: &anchors,
                trust_domain: &self.trust_domain,
                audience: &format!("{}{IDENTITIES_PATH}", self.base),
                wfms: &policy.wfms,
                now,
            },
        )?;
        if !lock(&self.used).first_use(&binding, now)? {
            return Err(Problem::invalid_proof("bindingAssertion: replayed (its jti was used before)").into());
        }
        Ok(binding)
    }

    fn try_renew(
        &self,
        client: &Chain,
        encoded: &str,
        body: &[u8],
        faults: &Active,
        entry: &mut Entry,
    ) -> std::result::Result<Answer, Failure> {
        let policy = lock(&self.policy).clone();

        // The SVID presented, and that the path names it (R1).
        let anchors = lock(&self.pki).anchors();
        let id = clients::judge_svid(client, &anchors, &self.trust_domain).map_err(Problem::unauthorized)?;
        if URL_SAFE_NO_PAD.encode(&id) != encoded {
            return Err(Problem::unauthorized(
                "the path names another SPIFFE ID than the \
                                              client certificate",
            )
            .into());
        }
        let leaf = client.first().ok_or_else(|| Problem::unauthorized("no client certificate"))?;
        let mut registry = lock(&self.registry);
        let identity = registry.by_ldi(&id).ok_or_else(|| Problem::unauthorized("no such identity"))?.clone();
        if !identity.accepts(leaf) {
            return Err(Problem::unauthorized("this SVID is no longer good").into());
        }

        // The request.
        let request = Renewal::parse(body)?;
        let key = read_request(&policy, &request.svid_profile_uri, request.svid_request.as_deref())?;
        let key_sha256 = key.digest();

        // Policy. "The same key" is the one of the SVID presented, or the one certified last: a
        // device whose response got lost has the former in hand and the latter in its request.
        let same = key.spki == crate::x509::spki_of(leaf)? || key_sha256 == identity.key_sha256;
        if !same && !policy.rotation_at_renewal {
            return Err(Problem::rotation_refused("a renewal keeps its key here").into());
        }
        if let Some(wait) = identity.over(policy.renewal_limit, Occasion::Renewal) {
            return Err(Problem::too_many(wait).into());
        }
        let issuance = Issuance {
            esi: &identity.esi,
            ldi: &identity.ldi,
            key_sha256: &key_sha256,
            occasion: Occasion::Renewal,
            // Nothing in the SUP says that a renewal ends the SVID before it.
            invalidates_earlier: false,
        };
        let answer = self.issue(&mut registry, &policy, faults, entry, &key, &issuance)?;
        Ok((StatusCode::OK, answer))
    }

    /// Signs, records durably, and renders the response.
    fn issue(
        &self,
        registry: &mut Registry,
        policy: &Policy,
        faults: &Active,
        entry: &mut Entry,
        key: &CsrKey,
        issuance: &Issuance<'_>,
    ) -> Result<Vec<u8>> {
        let pki = lock(&self.pki);
        let authority = pki.issuing()?;
        let mut leaf = LeafSpec::new(issuance.ldi, &key.spki, policy);
        faults.bend_leaf(&mut leaf)?;
        let mut chain = match faults.issuer(authority)? {
            Some((issuer, above)) => [vec![leaf.sign(&issuer)?], above].concat(),
            None => [vec![leaf.sign(authority.issuer())?], authority.chain()].concat(),
        };
        registry.record(issuance, &chain[0], leaf.not_after)?;
        entry.issued = true;
        entry.spiffe_id = Some(leaf.uris.join(" "));

        faults.bend_chain(&mut chain, authority);
        let chain: Vec<String> =
            chain.iter().map(|der| pem::encode("CERTIFICATE", der, faults.pem_width())).collect();
        let mut answer = wire::svid_answer(wire::X509_PROFILE, &chain);
        faults.bend_answer(&mut answer);
        Ok(answer.to_string().into_bytes())
    }
}

/// `422` for a profile that is not offered, `400` for a request that the profile refuses.
fn read_request(
    policy: &Policy,
    profile: &str,
    request: Option<&RawValue>,
) -> std::result::Result<CsrKey, Problem> {
    if !policy.knows_profile(profile) {
        return Err(Problem::unsupported_profile(format!("SVID profile {profile:?} is not offered")));
    }
    CsrKey::parse(&wire::csr_of(request)?)
}

fn refusal(failure: Failure) -> Problem {
    match failure {
        Failure::Refused(problem) => problem,
        Failure::Broken(error) => Problem::bare(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
