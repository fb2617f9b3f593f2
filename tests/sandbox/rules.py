"""The rules of the released programs, as pure functions: what a file must be, and what a peer must show.

Each function returns what it read or raises `Refused`, which names the check and the reason. Nothing
here opens a file or a socket. The rules are those of Margo's released WFM client and WFM, deliberately
also where they are weaker or stricter than the specification: README.md lists them.
"""

import base64
import binascii
import json
import re
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

# The two kinds of principal, by the form of their SPIFFE IDs.
WFM = "WFM"
WFM_CLIENT = "WFM client"

FORMS = {
    WFM: re.compile(r"spiffe://[^/]+/margo/wfm/[^/]+"),
    WFM_CLIENT: re.compile(r"spiffe://[^/]+/margo/wfm/[^/]+/client/[^/]+"),
}
ID_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
ID_SEGMENT = re.compile(r"[a-zA-Z0-9._~!$&'()*+,;=:@%-]+")
DNS_TRUST_DOMAIN = re.compile(r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.)+[a-zA-Z]{2,}")
PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----[ \t]*\r?\n(.*?)-----END \1-----", re.DOTALL)

# Extensions that a verifier of certificates knows; any other one that is critical ends the path.
KNOWN_EXTENSIONS = {
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.CERTIFICATE_POLICIES,
    ExtensionOID.CRL_DISTRIBUTION_POINTS,
}
LONGEST_PATH = 8


class Refused(Exception):
    """A check that failed, and why."""

    def __init__(self, check, reason):
        super().__init__(f"{check}: {reason}")
        self.check, self.reason = check, reason


class Svid(NamedTuple):
    """A certificate file: all certificates of it, leaf first, and the leaf's SPIFFE ID."""

    chain: list
    spiffe_id: str

    @property
    def leaf(self):
        return self.chain[0]


# Files


def svid(data, principal):
    """The certificate file of a party of this kind."""
    blocks = pem(data, "certificate")
    if blocks[0][0] != "CERTIFICATE":
        raise Refused("certificate", f"the first PEM block is {blocks[0][0]}, not CERTIFICATE")
    chain = [certificate(der, "certificate") for label, der in blocks if label == "CERTIFICATE"]
    spiffe_id = only_uri(chain[0], "certificate")
    form(spiffe_id, principal, "certificate")
    valid_at(chain[0], now(), "certificate")
    return Svid(chain, spiffe_id)


def private_key(data):
    """The unencrypted private key in the first PEM block of a key file."""
    label, der = pem(data, "key")[0]
    if label not in ("PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"):
        raise Refused("key", f"the first PEM block is {label}; PRIVATE KEY, EC PRIVATE KEY or RSA PRIVATE KEY is read")
    try:
        key = load_der_private_key(der, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Refused("key", f"no unencrypted private key: {error}") from error
    if isinstance(key, ec.EllipticCurvePrivateKey):
        if key.curve.name not in ("secp256r1", "secp384r1", "secp521r1"):
            raise Refused("key", f"the curve {key.curve.name} is not P-256, P-384 or P-521")
    elif not isinstance(key, (rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)):
        raise Refused("key", "neither an EC, an RSA nor an Ed25519 key")
    return key


def pair(leaf, key):
    """The key belongs to the certificate."""
    if spki(leaf.public_key()) != spki(key.public_key()):
        raise Refused("key-pair", "the key does not belong to the certificate")


def https_ca(data):
    """The first certificate of https-ca.crt. It must be able to sign CRLs too."""
    label, der = pem(data, "https-ca")[0]
    if label != "CERTIFICATE":
        raise Refused("https-ca", f"the first PEM block is {label}, not CERTIFICATE")
    ca = certificate(der, "https-ca")
    if not is_ca(ca):
        raise Refused("https-ca", "not a CA")
    usage = extension(ca, x509.KeyUsage)
    if usage is None or not usage.key_cert_sign:
        raise Refused("https-ca", "its key usage lacks keyCertSign")
    if not usage.crl_sign:
        raise Refused("https-ca", "its key usage lacks cRLSign")
    valid_at(ca, now(), "https-ca")
    return ca


def anchor_file(data):
    """The certificates of a CA file that is read in the ordinary way: each PEM block, wherever it stands."""
    anchors = [certificate(der, "ca") for label, der in all_blocks(data, "ca") if label == "CERTIFICATE"]
    if not anchors:
        raise Refused("ca", "no certificate in the file")
    return anchors


def trust_domain(name):
    """A DNS name whose top level has two letters or more."""
    if not DNS_TRUST_DOMAIN.fullmatch(name):
        raise Refused("trust-domain", f"{name!r} is not a DNS name with a top-level domain of two letters or more")
    return name


def bundle(data):
    """The X.509 anchors of a plain SPIFFE bundle, all of whose keys must be readable."""
    document = json_of(data, "bundle")
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise Refused("bundle", "no plain bundle: it has no array `keys`")
    if not document["keys"]:
        raise Refused("bundle", "no keys")
    for member in ("spiffe_sequence", "spiffe_refresh_hint"):
        value = document.get(member)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise Refused("bundle", f"{member} is not a non-negative integer")
    anchors = []
    for place, jwk in enumerate(document["keys"]):
        key, certificates = readable_jwk(jwk, f"key {place}")
        if jwk.get("use") != "x509-svid":
            continue
        if len(certificates) != 1:
            raise Refused("bundle", f"key {place} has {len(certificates)} elements in x5c, not one")
        if spki(certificates[0].public_key()) != spki(key):
            raise Refused("bundle", f"key {place} is not that of its certificate")
        anchors.append(certificates[0])
    if not anchors:
        raise Refused("bundle", "no X.509 key")
    return anchors


def static_bundle(data):
    """A bundle file as it is judged before it is needed: it has an array `keys`."""
    document = json_of(data, "bundle-file")
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise Refused("bundle-file", "no plain bundle: it has no array `keys`")
    return data


def refresh_hint(data):
    """The hint of a bundle in seconds, or None where there is none to go by."""
    try:
        hint = json.loads(data).get("spiffe_refresh_hint")
    except (ValueError, AttributeError):
        return None
    return hint if isinstance(hint, int) and not isinstance(hint, bool) and hint > 0 else None


def authorized(data, principal):
    """The allow list at the start: blanks around an ID, and blank entries, are passed over."""
    ids = [trimmed for entry in strings(data) if (trimmed := entry.strip())]
    if not ids:
        raise Refused("authorized", "the list has no SPIFFE ID")
    for spiffe_id in ids:
        form(spiffe_id, principal, "authorized")
    return ids


def new_authorized(data, principal):
    """The allow list while the program runs: blanks are no longer passed over, and an empty list allows no peer."""
    ids = strings(data)
    for spiffe_id in ids:
        form(spiffe_id, principal, "authorized")
    return ids


def authorized_domain(ids, domain):
    """The IDs of the allow list are of the party's own trust domain. Checked at the start only."""
    for spiffe_id in ids:
        if domain_of(spiffe_id) != domain:
            raise Refused("authorized-domain", f"{spiffe_id} is not of {domain}")


def own_domain(spiffe_id, domain):
    """The party's own SPIFFE ID is of the trust domain."""
    if domain_of(spiffe_id) != domain:
        raise Refused("own-domain", f"{spiffe_id} is not of {domain}")


def own_chain(leaf, anchors):
    """The leaf is signed by an anchor itself: intermediates of the file are not looked at."""
    chain_to(leaf, [], anchors, "chain")


# A peer


def peer(chain, *, principal, own_id, domain, anchors, allowed):
    """The SPIFFE ID of a peer, by the seven checks of each connection in their order.

    `chain` is what the peer sent, in DER, leaf first.
    """
    leaf, *intermediates = present(chain)
    spiffe_id = only_uri(leaf, "peer-trust-domain")
    if domain_of(spiffe_id) != domain:
        raise Refused("peer-trust-domain", f"{spiffe_id} is not of {domain}")
    chain_to(leaf, intermediates, anchors, "peer-chain")
    form(spiffe_id, principal, "peer-form")
    valid_at(leaf, now(), "peer-validity")
    if is_ca(leaf):
        raise Refused("peer-leaf", "the certificate is a CA's")
    usage = extension(leaf, x509.KeyUsage)
    if usage is not None and (usage.key_cert_sign or usage.crl_sign):
        raise Refused("peer-leaf", "its key usage has keyCertSign or cRLSign")
    if spiffe_id not in allowed:
        raise Refused("peer-allow-list", f"{spiffe_id} is not in the allow list")
    if wfm_of(spiffe_id) != wfm_of(own_id):
        raise Refused("peer-same-wfm", f"{spiffe_id} has another wfm-id than {own_id}")
    return spiffe_id


def toolkit_peer(chain, *, own_id, anchors):
    """The SPIFFE ID of a client, by the checks of the conformance toolkit's WFM."""
    leaf, *intermediates = present(chain)
    try:
        path(leaf, intermediates, anchors, now(), ExtendedKeyUsageOID.CLIENT_AUTH)
    except NoPath as error:
        raise Refused("peer-chain", str(error)) from error
    spiffe_id = only_uri(leaf, "peer-form")
    prefix, _, segment = spiffe_id.partition("/client/")
    if prefix != own_id or not segment or "/" in segment:
        raise Refused("peer-form", f"{spiffe_id} is not {own_id}/client/<one segment>")
    return spiffe_id


def present(chain):
    if not chain:
        raise Refused("peer-certificate", "the peer has shown no certificate")
    return [certificate(der, "peer-certificate") for der in chain]


def chain_to(leaf, intermediates, anchors, check):
    """A path to an anchor, as it would have been one second after the leaf's notBefore."""
    try:
        path(leaf, intermediates, anchors, leaf.not_valid_before_utc + timedelta(seconds=1))
    except NoPath as error:
        raise Refused(check, str(error)) from error


# SPIFFE IDs


def form(spiffe_id, principal, check):
    """The SPIFFE ID has the form of this kind of principal."""
    domain, slash, rest = spiffe_id.removeprefix("spiffe://").partition("/")
    if not spiffe_id.startswith("spiffe://") or not slash:
        raise Refused(check, f"{spiffe_id!r} is not a SPIFFE ID with a path")
    if not ID_TRUST_DOMAIN.fullmatch(domain):
        raise Refused(check, f"the trust domain of {spiffe_id!r} has other characters than a-z 0-9 . - _")
    if not all(ID_SEGMENT.fullmatch(segment) for segment in rest.split("/")):
        raise Refused(check, f"{spiffe_id!r} has an empty segment, or one with a character that is not permitted")
    if not FORMS[principal].fullmatch(spiffe_id):
        raise Refused(check, f"{spiffe_id} does not have the form of a {principal}")


def domain_of(spiffe_id):
    return spiffe_id.removeprefix("spiffe://").partition("/")[0]


def wfm_of(spiffe_id):
    return spiffe_id.partition("/client/")[0]


# Certificates


class NoPath(Exception):
    """Why there is no path from a certificate to an anchor."""


def path(leaf, intermediates, anchors, at, usage=None):
    """The path from the leaf to an anchor in which every certificate is valid at this moment.

    With `usage`, each certificate that has an extended key usage must permit it.
    """
    reasons = []

    def acceptable(cert, below):
        name = cert.subject.rfc4514_string() or f"serial {cert.serial_number:x}"
        try:
            extensions = list(cert.extensions)
        except ValueError as error:
            return f"{name}: {error}"
        if unknown := [e.oid.dotted_string for e in extensions if e.critical and e.oid not in KNOWN_EXTENSIONS]:
            return f"{name} has an unknown critical extension: {unknown[0]}"
        if not cert.not_valid_before_utc <= at <= cert.not_valid_after_utc:
            return f"{name} is not valid at {at:%Y-%m-%dT%H:%M:%SZ}"
        permitted = extension(cert, x509.ExtendedKeyUsage)
        if usage and permitted is not None and not {usage, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(permitted):
            return f"{name} is not for clients (extended key usage)"
        if not below:
            return None
        constraints, key_usage = extension(cert, x509.BasicConstraints), extension(cert, x509.KeyUsage)
        if constraints is None or not constraints.ca:
            return f"{name} is not a CA"
        if key_usage is not None and not key_usage.key_cert_sign:
            return f"{name} may not sign certificates"
        if constraints.path_length is not None and len(below) - 1 > constraints.path_length:
            return f"the path below {name} is too long"
        return None

    def climb(cert, below):
        if reason := acceptable(cert, below):
            reasons.append(reason)
            return None
        here = [*below, cert]
        for anchor in anchors:
            if signed(cert, anchor):
                if reason := acceptable(anchor, here):
                    reasons.append(reason)
                else:
                    return [*here, anchor]
        if len(here) < LONGEST_PATH:
            for issuer in intermediates:
                if issuer not in here and signed(cert, issuer) and (found := climb(issuer, here)):
                    return found
        return None

    if found := climb(leaf, []):
        return found
    raise NoPath("; ".join(reasons) or "signed by no anchor of the bundle, nor by an intermediate that was looked at")


def signed(cert, issuer):
    try:
        cert.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def certificate(der, check):
    try:
        parsed = x509.load_der_x509_certificate(der)
        list(parsed.extensions)
        parsed.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise Refused(check, f"no readable certificate: {error}") from error
    return parsed


def extension(cert, kind):
    try:
        return cert.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def is_ca(cert):
    constraints = extension(cert, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def only_uri(cert, check):
    names = extension(cert, x509.SubjectAlternativeName)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else []
    if len(uris) != 1:
        raise Refused(check, f"{len(uris)} URI SANs; exactly one is a SPIFFE ID")
    return uris[0]


def valid_at(cert, at, check):
    if at < cert.not_valid_before_utc:
        raise Refused(check, f"not valid before {cert.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}")
    if at > cert.not_valid_after_utc:
        raise Refused(check, f"expired at {cert.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")


def spki(key):
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def now():
    return datetime.now(timezone.utc)


# Encodings


def pem(data, check):
    """The PEM blocks of a file that begins with one. Anything else before it makes the file one in DER."""
    if not data.lstrip().startswith(b"-----"):
        raise Refused(check, "not PEM, since it does not begin with a PEM block, and not DER either")
    return all_blocks(data, check)


def all_blocks(data, check):
    blocks = []
    for label, body in PEM_BLOCK.findall(data):
        if b":" in body:
            raise Refused(check, f"the PEM block {label.decode()} has headers, as encrypted keys have them")
        try:
            blocks.append((label.decode(), base64.b64decode(b"".join(body.split()), validate=True)))
        except binascii.Error as error:
            raise Refused(check, f"the PEM block {label.decode()} is not base64: {error}") from error
    if not blocks:
        raise Refused(check, "no PEM block")
    return blocks


def json_of(data, check):
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(check, f"not JSON: {error}") from error


def strings(data):
    ids = json_of(data, "authorized")
    if not isinstance(ids, list) or not all(isinstance(entry, str) for entry in ids):
        raise Refused("authorized", "not a JSON array of strings")
    return ids


def readable_jwk(jwk, name):
    """The public key of a JWK and the certificates in its x5c."""
    if not isinstance(jwk, dict):
        raise Refused("bundle", f"{name} is not an object")
    try:
        chain = jwk.get("x5c") or []
        if not isinstance(chain, list):
            raise ValueError("x5c is not an array")
        certificates = [certificate(base64.b64decode(element, validate=True), "bundle") for element in chain]
        return public_key(jwk), certificates
    except (KeyError, ValueError, TypeError, binascii.Error) as error:
        words = f"the member {error} is missing" if isinstance(error, KeyError) else str(error)
        raise Refused("bundle", f"{name} is not readable: {words}") from error


def public_key(jwk):
    if jwk["kty"] == "EC":
        curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
        curve = curves[jwk["crv"]] if jwk["crv"] in curves else None
        if curve is None:
            raise ValueError(f"the curve {jwk['crv']} is not known")
        return ec.EllipticCurvePublicNumbers(number(jwk["x"]), number(jwk["y"]), curve).public_key()
    if jwk["kty"] == "RSA":
        return rsa.RSAPublicNumbers(number(jwk["e"]), number(jwk["n"])).public_key()
    if jwk["kty"] == "OKP" and jwk["crv"] == "Ed25519":
        return ed25519.Ed25519PublicKey.from_public_bytes(unpadded(jwk["x"]))
    raise ValueError(f"the key type {jwk['kty']} is not known")


def number(text):
    return int.from_bytes(unpadded(text), "big")


def unpadded(text):
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
