"""The server as a process, and a client for its tests."""

import base64
import http.client
import json
import queue
import ssl
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from ca import SAN, name, new_key, pkcs8

PATIENCE = 120.0
SERVER = Path(__file__).with_name("est.py")
ID = "spiffe://factory.example/margo/wfm/wfm-1/client/line-7"
PKCS10 = {"Content-Type": "application/pkcs10"}


class Peer:
    """A server with a directory of its own."""

    def __init__(self, *options, directory=None):
        self.temporary = tempfile.TemporaryDirectory()
        self.directory = Path(directory or self.temporary.name, "est")
        self.process = subprocess.Popen(
            [sys.executable, "-B", SERVER, "--directory", self.directory, *map(str, options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said = queue.Queue()
        first = self.process.stdout.readline()
        self.address = first.removeprefix("listening on ").strip()
        assert self.address, "it did not start"
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.said.put(json.loads(line))

    def next(self, member, value=None):
        """The next line with this member, of this value if one is given."""
        while True:
            line = self.said.get(timeout=PATIENCE)
            if member in line and value in (None, line[member]):
                return line

    def order(self, at, *odd, times=None):
        self.process.stdin.write(json.dumps({"at": at, "odd": odd, "times": times}) + "\n")
        self.process.stdin.flush()
        while True:
            line = self.said.get(timeout=PATIENCE)
            if "ordered" in line or "error" in line:
                return line

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.temporary.cleanup()

    def context(self, identity=None, maximum=None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.directory / "https-ca.crt")
        if maximum:
            context.maximum_version = maximum
        if identity:
            context.load_cert_chain(*identity)
        return context

    def fetch(self, operation, body=None, headers=None, identity=None, label="factory", method=None):
        """Status, headers and body of a response."""
        target = urlsplit(self.address)
        if target.scheme == "https":
            connection = http.client.HTTPSConnection(target.netloc, context=self.context(identity), timeout=PATIENCE)
        else:
            connection = http.client.HTTPConnection(target.netloc, timeout=PATIENCE)
        try:
            path = "/".join(["/.well-known/est", *([label] if label else []), operation])
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def enroll(self, request, user="device", secret="s:cret", operation="simpleenroll"):
        return self.fetch(operation, encoded(request), {**PKCS10, **basic(user, secret)})

    def identity(self, key, certificate):
        """Files with the chain and the key."""
        chain, file = self.directory / "client.crt", self.directory / "client.key"
        chain.write_bytes(certificate.public_bytes(Encoding.PEM) + (self.directory / "intermediate.crt").read_bytes())
        file.write_bytes(pkcs8(key))
        return chain, file


def basic(user, secret):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()}


def request(key=None, common_name=None, san=None, subject=None):
    """A certification request in DER. `san`: (critical, value)."""
    key = key or new_key()
    subject = subject or (name(common_name) if common_name else x509.Name([]))
    made = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if san:
        made = made.add_extension(x509.UnrecognizedExtension(SAN, san[1]), critical=san[0])
    return made.sign(key, SHA256()).public_bytes(Encoding.DER)


def encoded(data):
    return base64.encodebytes(data)


def certificates(body):
    """Those of a response, in its order, as OpenSSL reads it."""
    data = base64.b64decode(body)
    run = subprocess.run(
        ["openssl", "pkcs7", "-inform", "DER", "-print_certs"], input=data, capture_output=True, check=True
    )
    return x509.load_pem_x509_certificates(run.stdout)
