"""Certificates, keys and documents for the self-tests, with any one thing wrong."""

import base64
import json
import secrets
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import mis

DOMAIN = "margo.org"
WFM = f"spiffe://{DOMAIN}/margo/wfm/wfm-1"
CLIENT = f"{WFM}/client/dev-1"
DEVICE = f"spiffe://{DOMAIN}/margo/device/0b2f7d7e-7a49-4b6f-8a55-0d9f3c9b7c11"
NOW = datetime.now(timezone.utc).replace(microsecond=0)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
CLIENT_AUTH, SERVER_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


class Holder:
    """A certificate and its key."""

    def __init__(self, cert, key):
        self.cert, self.key = cert, key
        self.der, self.pem = cert.public_bytes(Encoding.DER), mis.pem(cert)

    @property
    def serial(self):
        return f"{self.cert.serial_number:x}"


def ca(name, issuer=None, begin=-30 * DAY, end=30 * DAY, key=None, uses=("key_cert_sign", "crl_sign"), is_ca=True):
    return made(name, [], issuer, begin, end, key, uses, is_ca, None, (), False)


def leaf(
    issuer,
    uris=(CLIENT,),
    begin=-HOUR,
    end=DAY,
    key=None,
    uses=("digital_signature",),
    is_ca=False,
    eku=(SERVER_AUTH, CLIENT_AUTH),
    dns=(),
    critical=False,
    name=DOMAIN,
):
    uris = [uris] if isinstance(uris, str) else uris
    return made(name, uris, issuer, begin, end, key, uses, is_ca, eku, dns, critical)


def made(name, uris, issuer, begin, end, key, uses, is_ca, eku, dns, critical):
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.cert.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(secrets.randbits(128) or 1)
        .not_valid_before(NOW + begin)
        .not_valid_after(NOW + end)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(mis.usage(*uses), critical=True)
    )
    if eku:
        builder = builder.add_extension(x509.ExtendedKeyUsage(eku), critical=False)
    names = [*map(x509.DNSName, dns), *map(x509.UniformResourceIdentifier, uris)]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=critical)
    signer = issuer.key if issuer else key
    return Holder(builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else SHA256()), key)


def key_pem(key, form=PrivateFormat.PKCS8, encryption=None):
    return key.private_bytes(Encoding.PEM, form, encryption or NoEncryption())


def jwk(cert, **other):
    return {
        "use": "x509-svid",
        **mis.jwk_of(cert.public_key()),
        "x5c": [base64.b64encode(cert.public_bytes(Encoding.DER)).decode()],
        **other,
    }


def bundle(*authorities, **other):
    return json.dumps({"keys": [jwk(authority.cert) for authority in authorities], **other}).encode()
