#!/usr/bin/env python3
"""An EST server (RFC 7030, as RFC 8951 has it) that knows nothing of Margo, and can be odd.

    est.py --directory DIR --user NAME SECRET [ID]

The directory gets its authorities: see ca.py. Oddities are ordered on the command line, or by lines of JSON on
standard input: README.md.
"""

import argparse
import base64
import binascii
import hashlib
import hmac
import itertools
import json
import re
import ssl
import sys
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

import oddities
import pkcs7
from ca import Ca, der, spki, uri_san
from der import names_of_certificate, names_of_request, oid

PATIENCE = 60.0  # seconds that a connection may be idle
LARGEST = 64 * 1024  # bytes of a request
OPERATIONS = {"cacerts": "GET", "simpleenroll": "POST", "simplereenroll": "POST"}
CHALLENGE_PASSWORD = oid("1.2.840.113549.1.9.7").encode()
ADMINISTRATION = threading.Lock()


class Refusal(Exception):
    """A response other than 200."""

    def __init__(self, status, text="", headers=None):
        super().__init__(text)
        self.status, self.text, self.headers = status, text, headers or {}


# Requests


def certification_request(body, lines, form):
    """The DER of a request body whose base64 has these lines. RFC 7030, 4.2.1, and RFC 8951, 3.1."""
    if form == "one-line" and lines != "one-line" or form == "lines" and lines == "one-line":
        raise Refusal(400, f"base64 decoding failed: {lines}\n")
    try:
        return base64.b64decode(bytes(byte for byte in body if byte not in b" \t\r\n"), validate=True)
    except binascii.Error as error:
        raise Refusal(400, f"base64 decoding failed: {error}\n") from error


def form_of(body):
    """How the base64 is broken into lines: a name for the log."""
    if not re.search(rb"\s", body):
        return "one-line"
    if not re.search(rb"\s", body[:-1]):
        return "one-line-and-line-break"
    widths = {len(line) for line in body.split()[:-1]}
    end = "crlf" if b"\r\n" in body else "lf"
    return f"lines-{widths.pop()}-{end}" if len(widths) == 1 else "irregular"


def parsed(data):
    """A certification request that proves the possession of its key: itself, its raw subject, its SAN, the
    object identifiers of its attributes."""
    try:
        request = x509.load_der_x509_csr(data)
        subject, san, attributes = names_of_request(data)
        if not request.is_signature_valid:
            raise Refusal(400, "the signature of the certification request is not valid\n")
    except (ValueError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise Refusal(400, f"malformed certification request: {error}\n") from error
    return request, subject, san, attributes


# Server


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    def setup(self):
        super().setup()
        self.number = next(self.server.connections)

    def do_GET(self):
        self.entry = {"request": f"{self.command} {self.path}", "connection": self.number}
        self.entry["authorization"] = "Authorization" in self.headers
        certificate = self._client_certificate()
        self.entry["certificate"] = hashlib.sha256(certificate).hexdigest() if certificate else None
        if isinstance(self.connection, ssl.SSLSocket):
            self.entry.update(tls=self.connection.version(), resumed=self.connection.session_reused)
        try:
            body = self._body()
            operation = self._operation()
            odd = self.server.order(operation)
            self.entry["odd"] = odd
            for name in odd:
                plain, _, value = name.partition("=")
                if plain in oddities.ANSWERS:
                    return self._respond(*oddities.ANSWERS[plain](self.headers, value))
            if "cut" in odd:
                return self._cut()
            certificates = self._cacerts(odd) if operation == "cacerts" else [self._issue(operation, body, odd)]
            if "cut-issued" in odd:
                return self._cut()
            return self._success(operation, [der(one) for one in certificates], odd)
        except Refusal as refusal:
            text = refusal.text.encode()
            self._respond(refusal.status, {**(oddities.TEXT if text else {}), **refusal.headers}, text)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_OPTIONS = do_GET

    def _body(self):
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdigit():
            self.close_connection = True
            raise Refusal(400, "a request needs a Content-Length\n")
        if int(length) > LARGEST:
            self.close_connection = True
            self.rfile.read(min(int(length), 16 * LARGEST))  # or the client would see a reset in place of the response
            raise Refusal(413, "404 Not Found\n")
        return self.rfile.read(int(length))

    def _operation(self):
        found = re.fullmatch(r"/\.well-known/est(?:/([^/?]+))?/([a-z]+)", self.path)
        if not found or found[2] not in OPERATIONS or (self.server.label or found[1]) != found[1]:
            raise Refusal(404, "404 page not found\n")
        if OPERATIONS[found[2]] != self.command:
            raise Refusal(405)
        return found[2]

    def _client_certificate(self):
        """The client's certificate in DER: of the TLS connection, or as nginx passes it on."""
        if isinstance(self.connection, ssl.SSLSocket):
            return self.connection.getpeercert(binary_form=True)
        passed = self.headers.get("X-Client-Cert")
        if not passed or self.headers.get("X-Client-Verify") != "SUCCESS":
            return None
        return ssl.PEM_cert_to_DER_cert(unquote(passed))

    def _cacerts(self, odd):
        bags = [name for name in odd if name in oddities.BAGS]
        return self.server.ca.bag(bags[0]) if bags else self.server.ca.chain()

    def _issue(self, operation, body, odd):
        if operation == "simpleenroll":
            spiffe_id = self._authorized()
        else:
            current = self._renewed()
        if self.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/pkcs10":
            raise Refusal(415, "the media type has to be application/pkcs10\n")
        self.entry["base64"] = form_of(body)
        data = certification_request(body, self.entry["base64"], self.server.options.request)
        request, subject, san, attributes = parsed(data)
        self.entry["key"] = hashlib.sha256(spki(request.public_key())).hexdigest()
        self.entry["csr"] = hashlib.sha256(data).hexdigest()
        self.entry["subject"] = request.subject.rfc4514_string()
        self.entry["san"] = san[1].hex() if san else None
        self.entry["challenge_password"] = CHALLENGE_PASSWORD in attributes
        if operation == "simpleenroll":
            if self.server.options.require_subject and not request.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
                raise Refusal(500)
            if spiffe_id:
                san = (not list(request.subject), uri_san(spiffe_id))
            elif not self.server.options.copy_san:
                san = None
        elif not self.server.options.lax_renewal:
            had_subject, had_san = names_of_certificate(current)
            if subject != had_subject or (san and san[1]) != (had_san and had_san[1]):
                raise Refusal(403, "subject and subject alternative name have to be those of the certificate\n")
        leaves = [oddities.LEAVES[name] for name in odd if name in oddities.LEAVES]
        lifetime = timedelta(seconds=self.server.options.lifetime)
        make = leaves[0] if leaves else lambda ca, *arguments: ca.issue(*arguments)
        leaf = make(self.server.ca, request.public_key(), request.subject, san, lifetime)
        self.entry["serial"] = f"{leaf.serial_number:x}"
        return leaf

    def _authorized(self):
        """The SPIFFE ID that the credentials are registered for, or `None` for other known ones."""
        certificate = self._client_certificate()
        if certificate is not None:
            if certificate not in self.server.certificates:
                raise Refusal(403, "the certificate is not registered\n")
            return self.server.certificates[certificate]
        scheme, _, credentials = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            raise Refusal(401, "Unauthorized\n", oddities.BASIC)
        try:
            user, _, secret = base64.b64decode(credentials.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise Refusal(400, "malformed credentials\n") from error
        known, spiffe_id = self.server.users.get(user, ("", None))
        if not known or not hmac.compare_digest(known.encode(), secret.encode()):
            refusal = self.server.options.wrong_secret
            if refusal == "403":
                raise Refusal(403, "forbidden\n")
            raise Refusal(401, "Unauthorized\n", {"Connection": "close"} if refusal == "close" else oddities.BASIC)
        return spiffe_id

    def _renewed(self):
        """The certificate under renewal: one that this CA issued. TLS has validated it."""
        certificate = self._client_certificate()
        if certificate is None:
            raise Refusal(403, "a client certificate is needed\n")
        try:
            x509.load_der_x509_certificate(certificate).verify_directly_issued_by(self.server.ca.intermediate)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise Refusal(403, "the certificate was issued elsewhere\n") from error
        return certificate

    def _success(self, operation, certificates, odd):
        def chosen(table, default):
            return next((table[name] for name in odd if name in table), default)

        content = chosen(oddities.CONTENTS, lambda ca, certs: pkcs7.certs_only(certs))
        body = chosen(oddities.BODIES, oddities.BODIES[self.server.options.base64])
        default = "application/pkcs7-mime" if operation == "cacerts" else oddities.CERTS_ONLY
        headers = {"Content-Type": chosen(oddities.TYPES, default)}
        headers["Content-Transfer-Encoding"] = chosen(oddities.ENCODINGS, None)
        headers = {name: value for name, value in headers.items() if value}
        data = body(content(self.server.ca, certificates))
        if "cut-body" in odd or "without-length" in odd:
            self.close_connection = True
            sent = data[: len(data) // 2] if "cut-body" in odd else data
            return self._respond(200, headers, sent, len(data) if "cut-body" in odd else None)
        return self._respond(200, headers, data)

    def _cut(self):
        self.close_connection = True
        self._log(None)

    def _respond(self, status, headers, body, length=0):
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if body is not None and status != 204 and length is not None:
            self.send_header("Content-Length", str(length or len(body)))
        if self.close_connection and "Connection" not in headers:
            self.send_header("Connection", "close")
        self._log(status)  # first: a client that has the response finds it in the log
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(body)
        if body is None:
            self.rfile.read(1)  # until the client goes away
            self.close_connection = True

    def _log(self, status):
        say({**self.entry, "status": status})

    def log_message(self, *_):
        pass


class Est(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, options):
        super().__init__((options.host, options.port), Handler)
        self.options, self.label = options, options.label
        self.connections = itertools.count(1)
        self.ca = Ca(options.directory, options.name or ["localhost", "127.0.0.1"], options.https_leaf_only)
        self.users = {user: (secret, *(rest or [None])) for user, secret, *rest in options.user}
        self.certificates = {}
        for file, *rest in options.certificate:
            with open(file, "rb") as opened:
                certificate = x509.load_pem_x509_certificate(opened.read())
            self.certificates[der(certificate)] = rest[0] if rest else None
        self.orders = {operation: [] for operation in OPERATIONS}
        for operation, *names in options.odd:
            self.set(operation, names, None)
        self.context = None if options.plain else self._tls()

    def _tls(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = {"1.2": ssl.TLSVersion.TLSv1_2}.get(self.options.tls, ssl.TLSVersion.TLSv1_3)
        if self.options.tls == "1.2":
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        elif self.options.tls == "any":
            context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        directory = self.ca.directory
        context.load_cert_chain(directory / "https.crt", directory / "https.key")
        context.verify_mode = {
            "none": ssl.CERT_NONE,
            "optional": ssl.CERT_OPTIONAL,
            "required": ssl.CERT_REQUIRED,
        }[self.options.client_certificates]
        if context.verify_mode != ssl.CERT_NONE:
            for file in [directory / "ca.crt", *self.options.client_ca]:
                context.load_verify_locations(file)
        return context

    def set(self, operation, names, times):
        if operation not in OPERATIONS:
            raise ValueError(f"no such operation: {operation}")
        with ADMINISTRATION:
            self.orders[operation] = [[[oddities.check(name) for name in names], times]] if names else []

    def order(self, operation):
        """The oddities of this request."""
        with ADMINISTRATION:
            orders = self.orders[operation]
            if not orders:
                return []
            names, times = orders[0]
            if times is not None:
                orders[0][1] -= 1
                if orders[0][1] <= 0:
                    orders.pop(0)
            return names

    def finish_request(self, request, client_address):
        request.settimeout(PATIENCE)
        try:
            if self.context is None:
                self.RequestHandlerClass(request, client_address, self)
                return
            with self.context.wrap_socket(request, server_side=True) as secured:
                self.RequestHandlerClass(secured, client_address, self)
        except ssl.SSLError as error:
            say({"handshake": error.reason or str(error)})
        except OSError:
            pass  # the client went away

    def handle_error(self, request, client_address):
        pass


def say(line):
    with ADMINISTRATION:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def administer(server):
    """Takes orders from standard input: `{"at": OPERATION, "odd": [NAME…], "times": N}`."""
    for line in sys.stdin:
        try:
            order = json.loads(line)
            server.set(order["at"], order.get("odd") or [], order.get("times"))
            say({"ordered": order})
        except (ValueError, KeyError, TypeError) as error:
            say({"error": str(error)})


def main():
    parser = argparse.ArgumentParser(prog="est.py", description="An EST server that can be odd.")
    parser.add_argument("--directory", required=True)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--name", action="append", help="a name in the server's certificate")
    parser.add_argument("--label", help="the one path label that it serves (default: any, or none)")
    parser.add_argument("--user", nargs="+", action="append", default=[], metavar="NAME SECRET [ID]")
    parser.add_argument("--certificate", nargs="+", action="append", default=[], metavar="FILE [ID]")
    parser.add_argument("--client-ca", action="append", default=[], metavar="FILE", help="for --certificate")
    parser.add_argument("--copy-san", action="store_true", help="issue the SAN of the request as it is")
    parser.add_argument("--require-subject", action="store_true", help="500 for a request without common name")
    parser.add_argument("--lax-renewal", action="store_true", help="compare no names at renewal")
    parser.add_argument("--request", choices=["any", "one-line", "lines"], default="any", help="base64 of requests")
    parser.add_argument("--base64", choices=["one-line", "lines-64-lf", "lines-76-crlf"], default="lines-76-crlf")
    parser.add_argument("--wrong-secret", choices=["challenge", "close", "403"], default="challenge")
    parser.add_argument("--lifetime", type=int, default=3600, metavar="SECONDS")
    parser.add_argument("--tls", choices=["1.3", "1.2", "any"], default="1.3")
    parser.add_argument("--client-certificates", choices=["optional", "required", "none"], default="optional")
    parser.add_argument("--https-leaf-only", action="store_true", help="do not send the intermediate of HTTPS")
    parser.add_argument("--plain", action="store_true", help="HTTP behind a front end that passes X-Client-Cert on")
    parser.add_argument("--odd", nargs="+", action="append", default=[], metavar="OPERATION NAME…")
    options = parser.parse_args()
    try:
        server = Est(options)
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
    host, port = server.server_address
    print(f"listening on {'http' if options.plain else 'https'}://{host}:{port}", flush=True)
    threading.Thread(target=administer, args=(server,), daemon=True).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
