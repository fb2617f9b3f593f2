//! External keys: keys of the TPM that the agent has not created, such as the factory key (rule
//! K5). Any that can do TLS 1.3 (RFC 8446 section 4.2.3) is accepted; the error for any other says
//! why it is not.

use std::fmt;
use std::sync::Arc;

use der::asn1::UintRef;
use der::{Encode, Sequence};
use ring::digest::{self, SHA256, SHA384, SHA512};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, UnparsedPublicKey, VerificationAlgorithm,
};
use rustls::pki_types::{SubjectPublicKeyInfoDer, alg_id};
use rustls::sign::public_key_to_spki;
use tss_esapi::Context;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::structures::{
    EccScheme, HashScheme, Private, Public, PublicKeyRsa, RsaExponent, RsaScheme, Signature, SignatureScheme,
};
use tss_esapi::traits::Marshall;

use super::Tpm;
use super::auth::{AuthValue, check_length};
use super::error::{TpmError, Unfit};
use super::lockout_guard::AuthAttempt;
use super::ops::{
    ecdsa, ecdsa_der, halves, overwrite_command_buffer, sec1, sign_loaded, with_loaded, with_persistent,
};
use super::parent::{Storage, Under};
use super::response_code::{During, Failure, Step};
use crate::keys::KeyError;
use crate::keys::error::named;
use crate::keys::tss2::Tss2Key;
use crate::platform::credentials::wipe_stack;

/// An external key of the TPM for TLS 1.3. Every signature is verified before it is returned.
pub(in crate::keys) struct ExternalKey {
    tpm: Tpm,
    /// Its name in errors.
    origin: String,
    object: Arc<Object>,
    public: PublicHalf,
}

/// Where the key is, and its authorization.
struct Object {
    place: Place,
    public: Public,
    /// An empty password is sent where none is configured.
    auth: Option<AuthValue>,
    /// Distinguishes the key from others.
    id: Vec<u8>,
}

enum Place {
    /// In a key file, created under another key.
    File { under: Under, private: Private },
    /// In the TPM, at a persistent handle.
    Handle(u32),
}

impl Tpm {
    /// A key from a TSS2 file, with its password if it has one. The TPM is not involved until the
    /// key signs.
    pub(in crate::keys) fn external_key_from_file(
        &self,
        file: &Tss2Key,
        auth: Option<&AuthValue>,
        origin: String,
    ) -> Result<ExternalKey, KeyError> {
        let (public, private) = halves(file).map_err(|error| named(error, &origin))?;
        // A password is changed in the private half, so a file with another password is another
        // object.
        let id = [file.public.as_slice(), file.private.as_slice()].concat();
        let place = Place::File { under: Under::unnamed(file.parent), private };
        ExternalKey::new(self, origin, place, public, &id, auth)
    }

    /// The key at a persistent handle, with its password if it has one. Blocks.
    pub(in crate::keys) fn external_key_at_handle(
        &self,
        handle: u32,
        auth: Option<&AuthValue>,
    ) -> Result<ExternalKey, KeyError> {
        let origin = format!("the key at handle {handle:#010x} of the TPM");
        // 0x81 stands for persistent objects (TPM 2.0 specification, part 2, TPM_HT).
        if handle >> 24 != 0x81 {
            return Err(TpmError::HandleMissing { tcti: self.worker.tcti(), handle }.into());
        }
        let public = self.worker.run(self.deadline, move |context| {
            let step = Step::Handle(handle);
            with_persistent(context, handle, step, |context, key| {
                let read = context.execute_without_session(|context| context.read_public(key));
                read.map(|(public, _, _)| public).during(step)
            })
        })?;
        let id = public
            .marshall()
            .map_err(|_| KeyError::Internal(format!("cannot encode the public area of {origin}")))?;
        ExternalKey::new(self, origin, Place::Handle(handle), public, &id, auth)
    }
}

impl ExternalKey {
    fn new(
        tpm: &Tpm,
        origin: String,
        place: Place,
        public: Public,
        id: &[u8],
        auth: Option<&AuthValue>,
    ) -> Result<Self, KeyError> {
        let half = match PublicHalf::of(&public) {
            Ok(half) => half,
            Err(why) => return Err(TpmError::Unfit { origin, why }.into()),
        };
        if let Some(auth) = auth {
            // Part 1, "Authorization Values": no longer than the digest that makes the key's name.
            check_length(&auth.read()?, digest_length(public.name_hashing_algorithm()), &origin)?;
        }
        let object = Object { place, public, auth: auth.cloned(), id: id.to_vec() };
        Ok(Self { tpm: tpm.clone(), origin, object: Arc::new(object), public: half })
    }

    /// Hashes and signs a message for TLS. Blocks.
    pub(in crate::keys) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let password = self.object.auth.as_ref().map(AuthValue::read).transpose()?;
        let attempt = AuthAttempt::new(&self.object.id, password.as_ref().map_or(&[], |password| password));
        if password.is_some() {
            wipe_stack(); // after the digest
        }
        self.tpm.storage.lockout_guard.check(&attempt).map_err(|refused| self.to_error(refused))?;

        let (object, storage, method) =
            (Arc::clone(&self.object), self.tpm.storage.clone(), self.public.method);
        let digest = digest::digest(method.digest, message);
        let signature = self
            .tpm
            .worker
            .run(self.tpm.deadline, move |context| {
                let password = password.as_ref().map(|password| password.as_slice());
                let sign = || object.sign(context, digest.as_ref(), method, &storage, password);
                let signed = storage.lockout_guard.run(&attempt, sign);
                if password.is_some() {
                    wipe_stack();
                }
                signed
            })
            .map_err(|error| self.about_this_key(error))?;
        self.check(message, &signature).map(|()| signature)
    }

    /// The only signature scheme that it signs with.
    pub(in crate::keys) fn scheme(&self) -> rustls::SignatureScheme {
        self.public.method.tls
    }

    /// The name of its algorithm, for people.
    pub(in crate::keys) fn algorithm(&self) -> &'static str {
        self.public.name
    }

    /// Its public half, as a certificate has it.
    pub(in crate::keys) fn spki(&self) -> &[u8] {
        self.public.spki.as_ref()
    }

    /// The TPM chooses the length of an RSA-PSS salt by itself, and a server would only say that it
    /// refuses it.
    fn check(&self, message: &[u8], signature: &[u8]) -> Result<(), KeyError> {
        if self.public.verify(message, signature) {
            return Ok(());
        }
        let (tcti, origin) = (self.tpm.worker.tcti(), self.origin.clone());
        Err(match self.object.public {
            Public::Rsa { .. } => TpmError::PssSalt { tcti, origin }.into(),
            _ => KeyError::WrongSignature { signer: format!("the TPM at {tcti}, with {origin},") },
        })
    }

    fn to_error(&self, failure: Failure) -> TpmError {
        self.about_this_key(self.tpm.worker.to_error(failure))
    }

    fn about_this_key(&self, error: TpmError) -> TpmError {
        let origin = self.origin.clone();
        match (error, &self.object.auth) {
            (TpmError::KeyPassword { tcti, code }, Some(_)) => TpmError::AuthRefused { tcti, origin, code },
            (TpmError::KeyPassword { .. }, None) => TpmError::AuthMissing { origin },
            (error, _) => error.about(&origin),
        }
    }
}

impl fmt::Debug for ExternalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExternalKey({}, {})", self.origin, self.public.name)
    }
}

impl Object {
    fn sign(
        &self,
        context: &mut Context,
        digest: &[u8],
        method: &Method,
        storage: &Storage,
        password: Option<&[u8]>,
    ) -> Result<Vec<u8>, Failure> {
        let signature = match &self.place {
            Place::File { under, private } => storage.with_parent(context, under, |context, parent| {
                with_loaded(context, parent, private, &self.public, |context, key| {
                    self.sign_loaded(context, key, digest, method, password)
                })
            }),
            Place::Handle(number) => {
                with_persistent(context, *number, Step::Handle(*number), |context, key| {
                    self.sign_loaded(context, key, digest, method, password)
                })
            }
        }?;
        match &signature {
            Signature::RsaPss(signature) => Ok(signature.signature().value().to_vec()),
            signature => ecdsa_der(signature),
        }
    }

    fn sign_loaded(
        &self,
        context: &mut Context,
        key: KeyHandle,
        digest: &[u8],
        method: &Method,
        password: Option<&[u8]>,
    ) -> Result<Signature, Failure> {
        let scheme = match self.public {
            Public::Rsa { .. } => SignatureScheme::RsaPss { hash_scheme: HashScheme::new(method.hash) },
            _ => ecdsa(method.hash),
        };
        let Some(password) = password else { return sign_loaded(context, key, digest, scheme) };
        let auth = tss_esapi::structures::Auth::try_from(password).during(Step::Sign)?;
        context.tr_set_auth(key.into(), auth).during(Step::Sign)?;
        let signed = sign_loaded(context, key, digest, scheme);
        // The TSS keeps its copy with the handle; this overwrites it.
        let wiped = context.tr_set_auth(key.into(), Default::default()).during(Step::Release);
        overwrite_command_buffer(context);
        let signature = signed?;
        wiped.map(|()| signature)
    }
}

/// A signature scheme of TLS 1.3, with its algorithms (RFC 8446 section 4.2.3).
struct Method {
    tls: rustls::SignatureScheme,
    hash: HashingAlgorithm,
    digest: &'static digest::Algorithm,
    verification: &'static dyn VerificationAlgorithm,
}

static P256: Method = Method {
    tls: rustls::SignatureScheme::ECDSA_NISTP256_SHA256,
    hash: HashingAlgorithm::Sha256,
    digest: &SHA256,
    verification: &ECDSA_P256_SHA256_ASN1,
};
static P384: Method = Method {
    tls: rustls::SignatureScheme::ECDSA_NISTP384_SHA384,
    hash: HashingAlgorithm::Sha384,
    digest: &SHA384,
    verification: &ECDSA_P384_SHA384_ASN1,
};
static PSS_SHA256: Method = Method {
    tls: rustls::SignatureScheme::RSA_PSS_SHA256,
    hash: HashingAlgorithm::Sha256,
    digest: &SHA256,
    verification: &RSA_PSS_2048_8192_SHA256,
};
static PSS_SHA384: Method = Method {
    tls: rustls::SignatureScheme::RSA_PSS_SHA384,
    hash: HashingAlgorithm::Sha384,
    digest: &SHA384,
    verification: &RSA_PSS_2048_8192_SHA384,
};
static PSS_SHA512: Method = Method {
    tls: rustls::SignatureScheme::RSA_PSS_SHA512,
    hash: HashingAlgorithm::Sha512,
    digest: &SHA512,
    verification: &RSA_PSS_2048_8192_SHA512,
};

/// The public half of a key that can do TLS 1.3.
struct PublicHalf {
    method: &'static Method,
    name: &'static str,
    /// A point in SEC1 form, or an `RSAPublicKey`.
    key: Vec<u8>,
    spki: SubjectPublicKeyInfoDer<'static>,
}

impl PublicHalf {
    fn of(public: &Public) -> Result<Self, Unfit> {
        let attributes = public.object_attributes();
        if !matches!(public, Public::Ecc { .. } | Public::Rsa { .. }) {
            return Err(Unfit::Kind);
        }
        if attributes.restricted() && attributes.decrypt() {
            return Err(Unfit::StorageKey);
        }
        if attributes.restricted() {
            return Err(Unfit::Restricted);
        }
        if !attributes.sign_encrypt() {
            return Err(Unfit::NoSign);
        }
        if !attributes.user_with_auth() {
            return Err(Unfit::Policy);
        }
        match public {
            Public::Ecc { parameters, unique, .. } => {
                let (method, name, length, algorithm) = match parameters.ecc_curve() {
                    EccCurve::NistP256 => (&P256, "ecdsa-p256", 32, alg_id::ECDSA_P256),
                    EccCurve::NistP384 => (&P384, "ecdsa-p384", 48, alg_id::ECDSA_P384),
                    _ => return Err(Unfit::Curve),
                };
                match parameters.ecc_scheme() {
                    EccScheme::Null => {}
                    EccScheme::EcDsa(scheme) if scheme.hashing_algorithm() == method.hash => {}
                    EccScheme::EcDsa(_) => return Err(Unfit::Hash),
                    _ => return Err(Unfit::Scheme),
                }
                let key = sec1(unique, length).ok_or(Unfit::Curve)?;
                Ok(Self { method, name, spki: public_key_to_spki(&algorithm, &key), key })
            }
            Public::Rsa { parameters, unique, .. } => {
                let bits = match parameters.key_bits() {
                    RsaKeyBits::Rsa1024 => return Err(Unfit::RsaSize),
                    RsaKeyBits::Rsa2048 => 2048,
                    RsaKeyBits::Rsa3072 => 3072,
                    RsaKeyBits::Rsa4096 => 4096,
                };
                let method = match parameters.rsa_scheme() {
                    RsaScheme::Null => &PSS_SHA256,
                    RsaScheme::RsaPss(scheme) => match scheme.hashing_algorithm() {
                        HashingAlgorithm::Sha256 => &PSS_SHA256,
                        HashingAlgorithm::Sha384 => &PSS_SHA384,
                        HashingAlgorithm::Sha512 => &PSS_SHA512,
                        _ => return Err(Unfit::Hash),
                    },
                    RsaScheme::RsaSsa(_) => return Err(Unfit::Pkcs1),
                    _ => return Err(Unfit::Scheme),
                };
                let key = rsa_public_key(unique, parameters.exponent()).ok_or(Unfit::Kind)?;
                let spki = public_key_to_spki(&alg_id::RSA_ENCRYPTION, &key);
                Ok(Self { method, name: rsa_name(bits), key, spki })
            }
            _ => Err(Unfit::Kind),
        }
    }

    /// Whether TLS 1.3 takes the signature. RSA-PSS with another salt than one as long as the
    /// digest is not taken.
    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.method.verification, &self.key).verify(message, signature).is_ok()
    }
}

/// `RSAPublicKey` of RFC 8017 appendix A.1.1.
#[derive(Sequence)]
struct RsaPublicKey<'a> {
    modulus: UintRef<'a>,
    exponent: UintRef<'a>,
}

fn rsa_public_key(modulus: &PublicKeyRsa, exponent: RsaExponent) -> Option<Vec<u8>> {
    // Part 2, TPMS_RSA_PARMS: zero stands for the usual exponent.
    let exponent = match exponent.value() {
        0 => 65_537,
        other => other,
    };
    let exponent = exponent.to_be_bytes();
    let key = RsaPublicKey {
        modulus: UintRef::new(modulus.value()).ok()?,
        exponent: UintRef::new(&exponent).ok()?,
    };
    key.to_der().ok()
}

/// The algorithm name of an RSA key, for people.
pub(in crate::keys) fn rsa_name(bits: usize) -> &'static str {
    match bits {
        2048 => "rsa-2048",
        3072 => "rsa-3072",
        4096 => "rsa-4096",
        _ => "rsa",
    }
}

fn digest_length(hash: HashingAlgorithm) -> usize {
    match hash {
        HashingAlgorithm::Sha1 => 20,
        HashingAlgorithm::Sha256 | HashingAlgorithm::Sm3_256 | HashingAlgorithm::Sha3_256 => 32,
        HashingAlgorithm::Sha384 | HashingAlgorithm::Sha3_384 => 48,
        HashingAlgorithm::Sha512 | HashingAlgorithm::Sha3_512 => 64,
        HashingAlgorithm::Null => 0,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use tss_esapi::attributes::ObjectAttributesBuilder;
    use tss_esapi::interface_types::algorithm::PublicAlgorithm;
    use tss_esapi::structures::{PublicBuilder, PublicRsaParameters, SymmetricDefinitionObject};

    use super::*;

    fn openssl(directory: &Path, arguments: &str) {
        let output =
            Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The key of `public.der`, as it would look in a TPM.
    fn in_a_tpm(directory: &Path) -> ExternalKey {
        let der = std::fs::read(directory.join("public.der")).unwrap();
        let modulus = <RsaPublicKey<'_> as der::Decode>::from_der(&der).unwrap().modulus.as_bytes().to_vec();
        let signs = ObjectAttributesBuilder::new().with_user_with_auth(true).with_sign_encrypt(true);
        let parameters = PublicRsaParameters::new(
            SymmetricDefinitionObject::Null,
            RsaScheme::Null,
            RsaKeyBits::Rsa2048,
            RsaExponent::ZERO_EXPONENT,
        );
        let public = PublicBuilder::new()
            .with_public_algorithm(PublicAlgorithm::Rsa)
            .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
            .with_object_attributes(signs.build().unwrap())
            .with_rsa_parameters(parameters)
            .with_rsa_unique_identifier(PublicKeyRsa::try_from(modulus).unwrap())
            .build()
            .unwrap();
        let tpm = Tpm::start("device:/nonexistent/tpmrm0".parse().unwrap());
        ExternalKey::new(&tpm, "the key".into(), Place::Handle(0x8102_0000), public, &[], None).unwrap()
    }

    #[test]
    fn rsa_pss_salt_that_tls_refuses_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        openssl(directory, "genrsa -out key.pem 2048");
        openssl(directory, "rsa -in key.pem -RSAPublicKey_out -outform DER -out public.der");
        std::fs::write(directory.join("message"), "a message").unwrap();
        let key = in_a_tpm(directory);
        let check = |salt: &str| {
            let pss = format!("-sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:{salt}");
            openssl(directory, &format!("dgst -sha256 -sign key.pem {pss} -out signature message"));
            key.check(b"a message", &std::fs::read(directory.join("signature")).unwrap())
        };

        check("32").unwrap();
        for other in ["max", "0", "31"] {
            let error = check(other).unwrap_err();
            assert!(matches!(error, KeyError::Tpm(TpmError::PssSalt { .. })), "{other}: {error:?}");
            assert!(crate::hint::Hint::hint(&error).unwrap().contains("Use an ECC key"), "{error}");
        }
    }
}
