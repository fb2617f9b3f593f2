#!/usr/bin/env python3
"""The released MIS: its HTTPS side and its mint command.

    mis.py serve --directory DIR [--port 0]
    mis.py mint x509 --directory DIR --csrPath FILE [--ttl SECONDS] [--dns NAME]... [--outputDir DIR]
    mis.py mint x509 --directory DIR --spiffeID ID ...

The directory has `ca.crt` and `ca.key`, which sign SVIDs, and `https-ca.crt`, which signs the server's
certificate. What is missing is made.
"""

import argparse
import base64
import hashlib
import ipaddress
import json
import os
import secrets
import ssl
import sys
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import rules

DISCOVERY = "/.well-known/margo"
BUNDLE = ".well-known/spiffe/bundle.json"
TYPES = "https://docs.margo.org/specification/problem-types#"
DAY = 86400
PATIENCE = 60.0  # seconds that a connection may be idle
LARGEST = 256 * 1024  # bytes of a body that is read to be passed over


# Documents


def discovery(trust_domain, host, port):
    """The discovery document. Port 443 is left out."""
    authority = host if port == 443 else f"{host}:{port}"
    return compact({"trustBundleUri": f"https://{authority}/{BUNDLE}", "trustDomain": trust_domain})


def bundle(ca_file):
    """The bundle of the first certificate in the CA file, read anew. Sequence and hint are always 1."""
    cert = first_certificate(ca_file)
    jwk = {"use": "x509-svid", **jwk_of(cert.public_key())}
    jwk["x5c"] = [base64.b64encode(cert.public_bytes(Encoding.DER)).decode()]
    return compact({"keys": [jwk], "spiffe_sequence": 1, "spiffe_refresh_hint": 1})


def problem(kind, title, status, detail, instance, retryable=False, strategy="none", after=None):
    """A Problem Details body, its members sorted."""
    members = {
        "type": kind,
        "title": title,
        "status": status,
        "detail": detail,
        "instance": instance,
        "retryable": retryable,
        "backoffStrategy": strategy,
    }
    if after is not None:
        members["retryAfterSeconds"] = after
    return compact(dict(sorted(members.items())))


def compact(document):
    """JSON without blanks, with the characters escaped that Go escapes."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode()


def first_certificate(path):
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f'failed to read CA cert "{path}": open {path}: {error.strerror.lower()}') from error
    blocks = rules.PEM_BLOCK.findall(data)
    if not blocks:
        raise ValueError(f'failed to decode PEM block from "{path}"')
    try:
        return x509.load_der_x509_certificate(base64.b64decode(blocks[0][1]))
    except ValueError as error:
        raise ValueError(f"failed to parse CA certificate: {error}") from error


def jwk_of(key):
    if isinstance(key, ec.EllipticCurvePublicKey):
        size, numbers = (key.key_size + 7) // 8, key.public_numbers()
        crv = {256: "P-256", 384: "P-384", 521: "P-521"}[key.key_size]
        return {"kty": "EC", "crv": crv, "x": b64url(numbers.x, size), "y": b64url(numbers.y, size)}
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        n, e = ((value.bit_length() + 7) // 8 for value in (numbers.n, numbers.e))
        return {"kty": "RSA", "n": b64url(numbers.n, n), "e": b64url(numbers.e, e)}
    if isinstance(key, ed25519.Ed25519PublicKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": b64url(int.from_bytes(key.public_bytes_raw(), "big"), 32)}
    raise ValueError("failed to marshal; no key type of a bundle")


def b64url(value, size):
    return base64.urlsafe_b64encode(value.to_bytes(size, "big")).rstrip(b"=").decode()


# Server


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if path == DISCOVERY:
            self._discovery()
        else:
            self._other(path.removeprefix("/"))

    do_HEAD = do_GET

    def do_POST(self):
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > LARGEST or "Transfer-Encoding" in self.headers:
            self.close_connection = True
        else:
            self.rfile.read(int(length))
        headers = {
            "Allow": "GET, HEAD",
            "Content-Type": "text/plain; charset=utf-8",
            "X-Content-Type-Options": "nosniff",
        }
        self._respond(405, b"Method Not Allowed\n", headers)

    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_POST

    def _discovery(self):
        if self._header("Accept") != "application/json":
            detail = "accept is either missing in request headers or does not accept application/json response"
            kind, title = TYPES + "server-cannot-generate-response", "Server Cannot Generate Response"
            return self._problem(problem(kind, title, 406, detail, DISCOVERY), 406)
        if self.server.without_discovery:
            kind, title = TYPES + "discovery-document-not-found", "Discovery Document Not Found"
            detail = "Trust domain discovery document not available."
            return self._problem(problem(kind, title, 404, detail, DISCOVERY, True, "exponential", 30), 404)
        return self._document(discovery(self.server.trust_domain, self.server.url_host, self.server.url_port))

    def _other(self, path):
        if path != BUNDLE:
            return self._problem(problem("about:blank", "Resource Not Found", 404, f"path {path} not found", path), 404)
        try:
            document = bundle(self.server.ca_file)
        except ValueError as error:
            kind, detail = TYPES + "spiffe-bundle-not-found", f"SPIFFE bundle unavailable, err: {error}"
            return self._problem(problem(kind, "Bundle Not Found", 404, detail, path, True, "exponential", 30), 404)
        return self._document(document)

    def _document(self, body):
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        if self._header("If-None-Match") == etag:
            return self._respond(304, None, {})
        return self._respond(200, body, {"Content-Type": "application/json", "Etag": etag})

    def _problem(self, body, status):
        self._respond(status, body, {"Content-Type": "application/problem+json"})

    def _header(self, name):
        return (self.headers.get(name) or "").strip(" \t")

    def _respond(self, status, body, headers):
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Date", formatdate(usegmt=True))
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if body is not None and self.command != "HEAD":
            self.wfile.write(body)
        sys.stdout.write(json.dumps({"request": f"{self.command} {self.path}", "status": status}) + "\n")
        sys.stdout.flush()

    def log_message(self, *_):
        pass


class Mis(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, options):
        super().__init__((options.host, options.port), Handler)
        directory = Path(options.directory)
        self.trust_domain = options.trust_domain
        self.ca_file = str(directory / "ca.crt")
        self.without_discovery = options.without_discovery
        self.url_host = options.url_host or f"mis.{options.trust_domain}"
        self.url_port = options.url_port or self.server_address[1]
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.set_alpn_protocols(["http/1.1"])
        chain = directory / "https-chain.crt"
        chain.write_bytes((directory / "https.crt").read_bytes() + (directory / "https-ca.crt").read_bytes())
        self.context.load_cert_chain(chain, directory / "https.key")

    def finish_request(self, request, client_address):
        request.settimeout(PATIENCE)
        try:
            with self.context.wrap_socket(request, server_side=True) as secured:
                self.RequestHandlerClass(secured, client_address, self)
        except OSError:
            pass  # ssl.SSLError too: the client does not trust this server, or went away

    def handle_error(self, request, client_address):
        pass


def serve(options):
    prepare(options)
    server = Mis(options)
    host, port = server.server_address
    print(f"listening on https://{host}:{port}", flush=True)
    server.serve_forever()


# Authorities


def prepare(options):
    """Makes what is missing in the directory, and the server's certificate for its names."""
    directory = Path(options.directory)
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "ca.crt").exists():
        key = ec.generate_private_key(ec.SECP256R1())
        write(directory / "ca.key", sec1(key), 0o600)
        write(directory / "ca.crt", pem(authority(options.trust_domain, key)), 0o644)
    if not (directory / "https-ca.crt").exists():
        key = rsa.generate_private_key(65537, 4096)
        write(directory / "https-ca.key", pkcs8(key), 0o600)
        write(directory / "https-ca.crt", pem(authority("mis-https-ca", key)), 0o644)
    names = [f"mis.{options.trust_domain}", *filter(None, [options.url_host]), *options.san]
    ca = first_certificate(directory / "https-ca.crt")
    ca_key = load_pem_private_key((directory / "https-ca.key").read_bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    write(directory / "https.key", pkcs8(key), 0o600)
    write(directory / "https.crt", pem(server_certificate(names, key, ca, ca_key)), 0o644)


def authority(common_name, key):
    """A self-signed CA that may sign certificates and CRLs."""
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Margo"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
    return (
        builder(name, name, key.public_key(), 3650 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )


def server_certificate(names, key, ca, ca_key):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    return (
        builder(subject, ca.subject, key.public_key(), 365 * DAY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([general_name(name) for name in dict.fromkeys(names)]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key()), critical=False)
        .sign(ca_key, SHA256())
    )


def general_name(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def builder(subject, issuer, key, ttl):
    begin = datetime.now(timezone.utc).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(secrets.randbits(128) or 1)
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(seconds=ttl))
    )


def usage(*names):
    every = (
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
    return x509.KeyUsage(**{name: name in names for name in every})


# Mint


def mint(options):
    if bool(options.csrPath) == bool(options.spiffeID):
        raise ValueError("exactly one of --csrPath and --spiffeID is needed")
    if options.ttl <= 0:
        raise ValueError(f"invalid TTL {options.ttl}: must be a positive integer (seconds)")
    if not all(name.strip() for name in options.dns):
        raise ValueError("a DNS name is empty")
    output = Path(options.outputDir or ".")
    if not output.is_dir():
        raise ValueError(f'outputDir "{output}" does not exist: please create the directory first')
    directory = Path(options.directory)
    ca = first_certificate(directory / "ca.crt")
    ca_key = load_pem_private_key((directory / "ca.key").read_bytes(), None)
    made = None
    if options.csrPath:
        spiffe_id, key = request(Path(options.csrPath).read_bytes())
    else:
        spiffe_id, made = options.spiffeID, ec.generate_private_key(ec.SECP256R1())
        trust_domain_of(spiffe_id)
        if urlsplit(spiffe_id).path in ("", "/"):
            raise ValueError(f'invalid spiffeID "{spiffe_id}": path cannot be empty')
        key = made.public_key()
    write(output / "payload-cert.pem", pem(svid(spiffe_id, key, options.dns, options.ttl, ca, ca_key)), 0o600)
    if made:
        write(output / "payload-key.pem", sec1(made), 0o400)


def request(data):
    """SPIFFE ID and key of a CSR. Whatever it names is signed."""
    blocks = rules.PEM_BLOCK.findall(data)
    if blocks:
        if blocks[0][0] != b"CERTIFICATE REQUEST":
            raise ValueError(f"PEM block type must be 'CERTIFICATE REQUEST', got '{blocks[0][0].decode()}'")
        der = base64.b64decode(blocks[0][1])
    else:
        der = base64.b64decode(data, validate=True)
    csr = x509.load_der_x509_csr(der)
    try:
        valid = csr.is_signature_valid
    except (InvalidSignature, UnsupportedAlgorithm) as error:
        raise ValueError(f"CSR signature verification failed: {error}") from error
    if not valid:
        raise ValueError("CSR signature verification failed")
    try:
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    if len(uris) != 1:
        raise ValueError(f"CSR must contain exactly one URI SAN, got {len(uris)}")
    trust_domain_of(uris[0])
    if not blocks:
        raise ValueError("failed to decode PEM block of the CSR")  # base64 of DER passes the check, not the signing
    return uris[0], csr.public_key()


def trust_domain_of(spiffe_id):
    parts = urlsplit(spiffe_id)
    if parts.scheme != "spiffe":
        raise ValueError(f"URI SAN is not a valid SPIFFE ID: scheme must be 'spiffe', got '{parts.scheme}'")
    if not parts.netloc or set(":@") & set(parts.netloc) or parts.query or parts.fragment:
        raise ValueError(f"URI SAN is not a valid SPIFFE ID: '{spiffe_id}'")
    return parts.netloc


def svid(spiffe_id, key, dns, ttl, ca, ca_key):
    """The certificate of the released profile: one, without a chain, extensions in this order."""
    names = [*map(x509.DNSName, dns), x509.UniformResourceIdentifier(spiffe_id)]
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain_of(spiffe_id))
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    subject_key = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        builder(x509.Name([organization]), ca.subject, key, ttl)
        .add_extension(usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, SHA256())
    )


def pem(cert):
    return cert.public_bytes(Encoding.PEM)


def sec1(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def pkcs8(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write(path, data, mode):
    """Writes a file of this mode, in place of one that may be there."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)


def main():
    parser = argparse.ArgumentParser(prog="mis.py", description="The released MIS, replayed.")
    commands = parser.add_subparsers(required=True)
    server = commands.add_parser("serve", help="serve the documents")
    server.set_defaults(run=serve)
    server.add_argument("--directory", required=True)
    server.add_argument("--trust-domain", default="margo.org")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on")
    server.add_argument("--port", type=int, default=8443, help="0: a free one")
    server.add_argument(
        "--url-host",
        metavar="HOST",
        help="host in trustBundleUri and in the server's certificate (default: mis.TRUST-DOMAIN)",
    )
    server.add_argument("--url-port", type=int, metavar="PORT", help="port in trustBundleUri (default: the listener's)")
    server.add_argument("--san", action="append", default=[], metavar="NAME", help="a further name in the certificate")
    server.add_argument("--without-discovery", action="store_true", help="404 in place of the discovery document")
    minting = commands.add_parser("mint", help="mint an SVID").add_subparsers(required=True).add_parser("x509")
    minting.set_defaults(run=mint)
    minting.add_argument("--directory", required=True)
    minting.add_argument("--csrPath", metavar="FILE")
    minting.add_argument("--spiffeID", metavar="ID")
    minting.add_argument("--ttl", type=int, default=DAY, metavar="SECONDS")
    minting.add_argument("--dns", action="append", default=[], metavar="NAME")
    minting.add_argument("--outputDir", metavar="DIR")
    options = parser.parse_args()
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
