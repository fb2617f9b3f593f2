#!/usr/bin/env python3
"""mTLS as this device, in Python and without any access to its key: fetches a page from a server.

    mtls_client.py /run/miaf-agent/sign.sock wfm.factory.example:8443 spiffe://factory.example/wfm

Needs `pip install tlslite-ng==0.8.2 cryptography==50.0.2`, in these versions: Python's own ssl
needs the key itself, and tlslite-ng accepts any object that signs. It is pure Python: fine for a
client's few connections, not for a busy server.

The server is of the same trust domain, and identified by its SPIFFE ID, not by a host name: the
trust bundle vouches for identities.
"""

import base64
import http.client
import json
import socket
import sys

from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from tlslite.api import HandshakeSettings, HTTPTLSConnection, X509CertChain
from tlslite.errors import TLSAuthenticationError
from tlslite.utils.ecdsakey import ECDSAKey


def request(agent, method, path, body=None):
    """Sends a request to the agent at this socket, on a separate connection. Returns its response."""
    connection = http.client.HTTPConnection("miaf-agent")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(20)
    connection.sock.connect(agent)
    connection.request(method, path, body and json.dumps(body), {"connection": "close"})
    document = json.load(response := connection.getresponse())
    if response.status >= 300:
        raise RuntimeError(f"the agent responded: {document['detail']}. Hint: {document['hint']}")
    return document


class DeviceKey(ECDSAKey):
    """The key of one SVID. The agent signs with it."""
    key_type = "ecdsa"

    def __init__(self, agent, serial, public_key):
        self.agent, self.serial, self.public_key = agent, serial, public_key
        self.curve_name = public_key.curve_name

    def __len__(self):
        return len(self.public_key)

    def hasPrivateKey(self):
        return True

    def _sign(self, digest, hash_name):
        digest = base64.b64encode(digest).decode()
        body = {"algorithm": "ES256", "digest": digest, "serial": self.serial}
        signed = request(self.agent, "POST", "/v1/sign", body)
        return bytearray(base64.b64decode(signed["signature"]))

    def _verify(self, signature, digest):
        return self.public_key._verify(signature, digest)


def known_as(spiffe_id, bundle):
    """Returns a check that accepts only a server with this SPIFFE ID that the bundle vouches for."""
    anchors = [x509.load_der_x509_certificate(base64.b64decode(key["x5c"][0])) for key in bundle["keys"]]
    # An SVID is valid at both ends of a connection. The verifier for clients needs no host name.
    verifier = PolicyBuilder().store(Store(anchors)).build_client_verifier()

    def check(connection):
        shown = connection.session.serverCertChain.x509List
        leaf, *others = [x509.load_der_x509_certificate(bytes(one.writeBytes())) for one in shown]
        try:
            names = verifier.verify(leaf, others).subjects
        except VerificationError as error:
            raise TLSAuthenticationError(f"the trust bundle does not vouch for the server: {error}") from error
        ids = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
        if ids != [spiffe_id]:
            raise TLSAuthenticationError(f"the server is {ids}, not {spiffe_id}")

    return check


def fetch(agent, server, spiffe_id):
    """Returns the server's response to GET /.

    Fetches everything again for every connection: a rotation needs nothing more.
    """
    svid = request(agent, "GET", "/v1/svid")
    chain = X509CertChain()
    chain.parsePemList("".join(svid["certificateChainPem"]))
    key = DeviceKey(agent, svid["serial"], chain.getEndEntityPublicKey())
    settings = HandshakeSettings()
    settings.minVersion = (3, 4)  # TLS 1.3
    settings.certificate_compression_send = []  # else it compresses, whatever the server wants
    check = known_as(spiffe_id, request(agent, "GET", "/v1/bundle"))
    how = {"certChain": chain, "privateKey": key, "checker": check, "settings": settings}
    connection = HTTPTLSConnection(*server.rsplit(":", 1), timeout=20, **how)
    connection.request("GET", "/")
    return connection.getresponse().read()


if __name__ == "__main__":
    sys.stdout.buffer.write(fetch(*sys.argv[1:]))
