"""A CA with one intermediate, the CA of the HTTPS server, and what may be beside them in /cacerts."""

import base64
import ipaddress
import json
import os
import random
import secrets
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from der import BIT_STRING, GENERALIZED_TIME, SEQUENCE, SET, Node, context, integer, oid, sequence

DAY = timedelta(days=1)
SAN = x509.ObjectIdentifier("2.5.29.17")
EVERY_USAGE = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def new_key():
    return ec.generate_private_key(ec.SECP256R1())


def name(common_name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def usage(*names):
    return x509.KeyUsage(**{one: one in names for one in EVERY_USAGE})


def der(cert):
    return cert.public_bytes(Encoding.DER)


def pem(cert):
    return cert.public_bytes(Encoding.PEM)


def pkcs8(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def spki(key):
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def builder(subject, issuer, key, begin, end):
    now = datetime.now(timezone.utc).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(secrets.randbits(127) | 1 << 126)
        .not_valid_before(now + begin)
        .not_valid_after(now + end)
    )


def authority(subject, key, issuer, issuer_key, begin=-DAY, end=3650 * DAY, key_id=None):
    """The certificate of a CA. `key_id`: another's, for a decoy."""
    key_id = key_id or x509.SubjectKeyIdentifier.from_public_key(key)
    return (
        builder(subject, issuer, key, begin, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(key_id, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, SHA256())
    )


def key_id_of(cert):
    return cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value


class Ca:
    """The CA of a directory, which is made if it is missing.

    `ca.crt` (root) and `intermediate.crt` with their keys; `https-ca.crt`, and `https.crt` with its chain;
    `bundle.json`, the root as a SPIFFE bundle; `rollover.crt` and `rollover-bundle.json`, the next root, which
    OldWithNew leads to (RFC 7030, 4.1.3).
    """

    def __init__(self, directory, names, https_leaf_only=False):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.root_key, self.root = self._made("ca", "Root CA")
        self.key, self.intermediate = self._made("intermediate", "Issuing CA", (self.root_key, self.root))
        self.next_key, self.next_root = self._made("rollover", "Root CA")
        self._https(names, https_leaf_only)
        self._bundle("bundle.json", self.root)
        self._bundle("rollover-bundle.json", self.next_root)

    def _made(self, file, common_name, issuer=None):
        cert_file, key_file = self.directory / f"{file}.crt", self.directory / f"{file}.key"
        if cert_file.exists():
            cert = x509.load_pem_x509_certificate(cert_file.read_bytes())
            return load_pem_private_key(key_file.read_bytes(), None), cert
        key = new_key()
        issuer_key, issuer_name = (issuer[0], issuer[1].subject) if issuer else (key, name(common_name))
        cert = authority(name(common_name), key.public_key(), issuer_name, issuer_key)
        self._write(f"{file}.key", pkcs8(key), 0o600)
        self._write(f"{file}.crt", pem(cert))
        return key, cert

    def _https(self, names, leaf_only):
        root_key, root = self._made("https-ca", "HTTPS CA")
        key, intermediate = self._made("https-intermediate", "HTTPS issuing CA", (root_key, root))
        leaf_key = new_key()
        leaf = (
            builder(name(names[0]), intermediate.subject, leaf_key.public_key(), -DAY, 365 * DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage("digital_signature"), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([general_name(one) for one in names]), critical=False)
            .sign(key, SHA256())
        )
        self._write("https.key", pkcs8(leaf_key), 0o600)
        self._write("https.crt", pem(leaf) + (b"" if leaf_only else pem(intermediate)))

    def _bundle(self, file, cert):
        numbers = cert.public_key().public_numbers()
        jwk = {"use": "x509-svid", "kty": "EC", "crv": "P-256", "x": b64url(numbers.x), "y": b64url(numbers.y)}
        jwk["x5c"] = [base64.b64encode(der(cert)).decode()]
        self._write(file, json.dumps({"keys": [jwk], "spiffe_sequence": 1, "spiffe_refresh_hint": 60}).encode())

    def _write(self, file, data, mode=0o644):
        path = self.directory / file
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
            opened.write(data)

    def issue(self, key, subject, alternatives, lifetime, begin=timedelta(0)):
        """A certificate of an end entity. `alternatives`: the SAN extension as (critical, value), or `None`."""
        made = (
            builder(subject, self.intermediate.subject, key, begin, begin + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage("digital_signature"), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if alternatives:
            critical, value = alternatives
            made = made.add_extension(x509.UnrecognizedExtension(SAN, value), critical=critical)
        return made.sign(self.key, SHA256())

    # What is in /cacerts

    def chain(self):
        return [self.intermediate, self.root]

    def bag(self, kind):
        """The certificates of an odd /cacerts."""
        usual, strangers = self.chain(), [self._decoy("Root CA"), self._decoy("Another CA"), self._decoy("HTTPS CA")]
        if kind == "without-root":
            return [self.intermediate]
        if kind == "without-intermediate":
            return [self.root]
        if kind == "strange-roots":
            return [*strangers, *usual]
        if kind == "shuffled":
            bag = [*usual, *strangers, self.rollover()[0]]
            random.Random(7030).shuffle(bag)
            return bag
        if kind == "expired-twins":
            return [*self._expired_twins(), *usual]
        if kind == "rollover":
            return [*usual, self.next_root, *self.rollover()]
        if kind == "crowd":
            return [*self._crowd(400), *usual]
        if kind == "twice":
            return usual * 2
        raise ValueError(f"no such bag: {kind}")

    def rollover(self):
        """OldWithNew and NewWithOld: self-issued, and signed by the other key."""
        subject, old, new = self.root.subject, self.root_key, self.next_key
        return [authority(subject, old.public_key(), subject, new), authority(subject, new.public_key(), subject, old)]

    def _decoy(self, common_name):
        key = new_key()
        return authority(name(common_name), key.public_key(), name(common_name), key)

    def _expired_twins(self):
        of = [(self.root, self.root_key, self.root_key), (self.intermediate, self.key, self.root_key)]
        return [
            authority(cert.subject, key.public_key(), cert.issuer, issuer, -30 * DAY, -DAY) for cert, key, issuer in of
        ]

    def _crowd(self, count):
        """CAs of the intermediate's name and key identifier, each with a key of its own."""
        subject, key_id = self.intermediate.subject, key_id_of(self.intermediate)
        return [
            authority(subject, new_key().public_key(), self.root.subject, self.root_key, key_id=key_id)
            for _ in range(count)
        ]

    # What may be beside certificates in PKCS#7

    def crl(self):
        now = datetime.now(timezone.utc).replace(microsecond=0)
        return (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.intermediate.subject)
            .last_update(now)
            .next_update(now + DAY)
            .sign(self.key, SHA256())
            .public_bytes(Encoding.DER)
        )

    def attribute_certificate(self):
        """An attribute certificate (RFC 5755) as the choice `[2]` of a bag."""
        issuer = self.intermediate.subject.public_bytes()
        algorithm = sequence(oid("1.2.840.10045.4.3.2"))
        names = Node(context(4), [issuer])  # GeneralName: directoryName
        attribute = sequence(oid("2.5.4.72"), Node(SET, [sequence(Node(context(1), [Node(0x86, b"urn:role")]))]))
        information = sequence(
            integer(1),
            sequence(Node(context(1), [names])),
            Node(context(0), [sequence(names)]),
            algorithm,
            integer(1),
            sequence(Node(GENERALIZED_TIME, b"20260101000000Z"), Node(GENERALIZED_TIME, b"20460101000000Z")),
            sequence(attribute),
        )
        signature = self.key.sign(information.encode(), ec.ECDSA(SHA256()))
        whole = sequence(information, algorithm, Node(BIT_STRING, b"\x00" + signature)).encode()
        assert whole[0] == SEQUENCE
        return bytes([context(2)]) + whole[1:]


def general_name(one):
    try:
        return x509.IPAddress(ipaddress.ip_address(one))
    except ValueError:
        return x509.DNSName(one)


def uri_san(*uris):
    """The value of a SAN extension with these URIs."""
    return sequence(*(Node(0x86, uri.encode()) for uri in uris)).encode()


def b64url(value):
    return base64.urlsafe_b64encode(value.to_bytes(32, "big")).rstrip(b"=").decode()
