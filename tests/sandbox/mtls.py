"""TLS with certificates on both sides and with checks of our own on the peer's.

By tlslite-ng, since Python's ssl cannot ask for a client's certificate without validating it by OpenSSL's
rules. The checks run after the handshake and before a byte of HTTP is read or written.
"""

import socket
from http.server import ThreadingHTTPServer

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tlslite.api import HandshakeSettings, TLSConnection, X509, X509CertChain, parsePEMKey
from tlslite.constants import AlertDescription
from tlslite.errors import BaseTLSException

import rules

TLS_1_2, TLS_1_3 = (3, 3), (3, 4)
PATIENCE = 30.0  # seconds for a handshake, and between two reads
DRAIN = 64 * 1024  # bytes that a refused peer may still send, so that it reads the alert before a reset


class Credential:
    """A certificate chain and its key, in the types of tlslite-ng."""

    def __init__(self, chain, key):
        self.chain = X509CertChain([parsed(cert.public_bytes(Encoding.DER)) for cert in chain])
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.key = parsePEMKey(pem.decode(), private=True)


def parsed(der):
    cert = X509()
    cert.parseBinary(bytearray(der))
    return cert


def settings(minimum, decompresses=()):
    chosen = HandshakeSettings()
    chosen.minVersion, chosen.maxVersion = minimum, TLS_1_3
    chosen.eccCurves, chosen.keyShares = ["x25519", "secp256r1", "secp384r1"], ["x25519", "secp256r1"]
    # Go has no certificate compression, and tlslite-ng compresses whatever the server wants.
    chosen.certificate_compression_send, chosen.certificate_compression_receive = [], list(decompresses)
    return chosen


def ders(chain):
    return [bytes(cert.bytes) for cert in chain.x509List] if chain else []


def connect(address, host, credential, check):
    """A connection to a server that has passed `check`. Without SNI where `host` is an IP address."""
    connection = TLSConnection(socket.create_connection(address, timeout=PATIENCE))
    try:
        connection.handshakeClientCert(
            credential.chain, credential.key, settings=settings(TLS_1_3), serverName=None if is_ip(host) else host
        )
        checked(connection, ders(connection.session.serverCertChain), check)
    except BaseException:
        connection.sock.close()
        raise
    return connection


def is_ip(host):
    return ":" in host or host.replace(".", "").isdigit()


def checked(connection, chain, check):
    """What `check` makes of the peer. A refused peer is sent an alert."""
    try:
        return check(chain)
    except rules.Refused:
        none = not chain and connection.version == TLS_1_3
        description = AlertDescription.certificate_required if none else AlertDescription.bad_certificate
        try:
            for _ in connection._sendError(description):
                pass
        except (BaseTLSException, OSError):
            pass
        raise


class Server(ThreadingHTTPServer):
    """An HTTPS server whose connections have passed `check`, a function of the chain that the client sent.

    `check` is None where no certificate is asked for. Its result becomes `peer` of the handler. `report` is called
    for each connection with its number and what became of it.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address, handler, credential, minimum, check, report):
        super().__init__(address, handler)
        self.credential, self.minimum, self.check, self.report = credential, minimum, check, report

    def finish_request(self, request, client_address):
        request.settimeout(PATIENCE)
        connection, chain = TLSConnection(request), []
        try:
            connection.handshakeServer(
                certChain=self.credential.chain,
                privateKey=self.credential.key,
                reqCert=self.check is not None,
                # tlslite-ng names the algorithms in each CertificateRequest, and none is malformed (RFC 8879
                # section 3): OpenSSL 3.5 ends the handshake.
                settings=settings(self.minimum, ["zlib"]),
                alpn=[bytearray(b"http/1.1")],
            )
            chain = ders(connection.session.clientCertChain)
            peer = checked(connection, chain, self.check) if self.check else None
        except rules.Refused as refused:
            self.report(chain, refused)
            drain(request)
            return
        except (BaseTLSException, OSError, ValueError) as error:
            self.report(chain, error)
            return
        self.report(chain, peer)
        connection.peer, connection.chain = peer, chain
        try:
            self.RequestHandlerClass(connection, client_address, self)
            connection.close()
        except (BaseTLSException, OSError, ValueError):
            pass  # the client went away

    def handle_error(self, request, client_address):
        pass


def drain(request):
    try:
        request.shutdown(socket.SHUT_WR)
        request.settimeout(2)
        left = DRAIN
        while left > 0 and (data := request.recv(4096)):
            left -= len(data)
    except OSError:
        pass
