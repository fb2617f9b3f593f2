"""The MIS over HTTPS, and its mint command, as processes."""

import base64
import hashlib
import http.client
import json
import ssl
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

import mis
import pki
import programs
import rules

DISCOVERY, BUNDLE = "/.well-known/margo", "/.well-known/spiffe/bundle.json"
JSON = {"Accept": "application/json"}
TYPES = "https://docs.margo.org/specification/problem-types#"


def setUpModule():
    global directory, host, port
    directory = tempfile.TemporaryDirectory()
    program = programs.Program("mis.py", "serve", "--directory", directory.name, "--port", 0, server=True)
    unittest.addModuleCleanup(directory.cleanup)
    unittest.addModuleCleanup(program.stop)
    target = urlsplit(program.address)
    host, port = target.hostname, target.port


def trusting(path=None, name="mis.margo.org", maximum=None):
    """A TLS connection that trusts the HTTPS CA, and expects this name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(path or Path(directory.name, "https-ca.crt"))
    if maximum:
        context.maximum_version = maximum
    context.set_alpn_protocols(["h2", "http/1.1"])
    plain = http.client.HTTPConnection(host, port, timeout=programs.PATIENCE)
    plain.connect()
    plain.sock = context.wrap_socket(plain.sock, server_hostname=name)
    return plain


def fetch(path, headers=JSON, method="GET", body=None):
    connection = trusting()
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    read = response.read()
    connection.close()
    return response.status, response.headers, read


class Documents(unittest.TestCase):
    maxDiff = None

    def test_discovery_document_byte_for_byte(self):
        status, headers, body = fetch(DISCOVERY)
        wanted = f'{{"trustBundleUri":"https://mis.margo.org:{port}{BUNDLE}","trustDomain":"margo.org"}}'
        self.assertEqual((status, body), (200, wanted.encode()))
        self.assertEqual(set(headers), {"Content-Type", "Etag", "Date", "Content-Length"})
        self.assertEqual(headers["Content-Type"], "application/json")

    def test_discovery_document_names_one_host_whatever_was_asked(self):
        _, _, body = fetch(DISCOVERY, {**JSON, "Host": "elsewhere.example"})
        self.assertIn(b'"https://mis.margo.org:', body)

    def test_discovery_document_leaves_port_443_out(self):
        self.assertIn(b'"https://mis.margo.org/.well-known', mis.discovery("margo.org", "mis.margo.org", 443))

    def test_discovery_document_for_json_exactly(self):
        detail = "accept is either missing in request headers or does not accept application/json response"
        wanted = (
            f'{{"backoffStrategy":"none","detail":"{detail}","instance":"/.well-known/margo","retryable":false,'
            f'"status":406,"title":"Server Cannot Generate Response","type":"{TYPES}server-cannot-generate-response"}}'
        )
        for accept in (None, "*/*", "application/json, */*", "application/JSON", "application/json;q=1"):
            status, headers, body = fetch(DISCOVERY, {} if accept is None else {"Accept": accept})
            self.assertEqual((status, body.decode()), (406, wanted), accept)
            self.assertEqual(headers["Content-Type"], "application/problem+json")

    def test_bundle_byte_for_byte_for_any_accept(self):
        cert = x509.load_pem_x509_certificate(Path(directory.name, "ca.crt").read_bytes())
        numbers = cert.public_key().public_numbers()
        x, y = (base64.urlsafe_b64encode(n.to_bytes(32, "big")).decode().rstrip("=") for n in (numbers.x, numbers.y))
        x5c = base64.b64encode(cert.public_bytes(Encoding.DER)).decode()
        wanted = (
            f'{{"keys":[{{"use":"x509-svid","kty":"EC","crv":"P-256","x":"{x}","y":"{y}","x5c":["{x5c}"]}}],'
            '"spiffe_sequence":1,"spiffe_refresh_hint":1}'
        )
        for headers in (JSON, {}, {"Accept": "text/html"}):
            status, _, body = fetch(BUNDLE, headers)
            self.assertEqual((status, body.decode()), (200, wanted))
        self.assertEqual(rules.bundle(body), [cert])

    def test_bundle_is_read_at_each_request_and_only_the_first_block(self):
        path = Path(directory.name, "ca.crt")
        before, other = path.read_bytes(), pki.ca("another", key=rsa.generate_private_key(65537, 2048))
        self.addCleanup(path.write_bytes, before)
        path.write_bytes(other.pem + before)
        _, _, body = fetch(BUNDLE)
        self.assertEqual(rules.bundle(body), [other.cert])
        self.assertEqual(list(json.loads(body)["keys"][0]), ["use", "kty", "n", "e", "x5c"])

    def test_bundle_that_cannot_be_read(self):
        path = Path(directory.name, "ca.crt")
        before = path.read_bytes()
        self.addCleanup(path.write_bytes, before)
        path.write_text("nothing")
        status, headers, body = fetch(BUNDLE)
        problem = json.loads(body)
        self.assertEqual(status, 404)
        self.assertNotIn("Retry-After", headers)
        self.assertEqual(list(problem), sorted(problem))
        self.assertEqual(problem["type"], TYPES + "spiffe-bundle-not-found")
        self.assertEqual(
            (problem["retryable"], problem["backoffStrategy"], problem["retryAfterSeconds"]), (True, "exponential", 30)
        )

    def test_other_paths(self):
        wanted = (
            '{"backoffStrategy":"none","detail":"path api/v1/identities not found","instance":"api/v1/identities",'
            '"retryable":false,"status":404,"title":"Resource Not Found","type":"about:blank"}'
        )
        status, headers, body = fetch("/api/v1/identities")
        self.assertEqual((status, body.decode(), headers["Content-Type"]), (404, wanted, "application/problem+json"))

    def test_without_a_discovery_document(self):
        with Another("--without-discovery") as other:
            status, headers, body = fetch_at(other.address, DISCOVERY)
        problem = json.loads(body)
        self.assertEqual((status, problem["type"]), (404, TYPES + "discovery-document-not-found"))
        self.assertEqual((problem["retryable"], problem["retryAfterSeconds"]), (True, 30))
        self.assertNotIn("Retry-After", headers)

    def test_post_anywhere(self):
        for method in ("POST", "PUT", "DELETE"):
            for path in (DISCOVERY, BUNDLE, "/api/v1/identities"):
                status, headers, body = fetch(path, method=method, body=b"{}")
                self.assertEqual((status, headers["Allow"], body), (405, "GET, HEAD", b"Method Not Allowed\n"))
                self.assertEqual(headers["Content-Type"], "text/plain; charset=utf-8")

    def test_head(self):
        status, headers, body = fetch(BUNDLE, method="HEAD")
        self.assertEqual((status, body), (200, b""))
        self.assertEqual(int(headers["Content-Length"]), len(fetch(BUNDLE)[2]))


class Caching(unittest.TestCase):
    def test_etag_is_the_hash_of_the_body(self):
        for path in (DISCOVERY, BUNDLE):
            _, headers, body = fetch(path)
            self.assertEqual(headers["ETag"], f'"{hashlib.sha256(body).hexdigest()}"')
            self.assertFalse({"Last-Modified", "Cache-Control"} & set(headers))

    def test_if_none_match_is_compared_as_a_whole(self):
        etag = fetch(BUNDLE)[1]["ETag"]
        status, headers, body = fetch(BUNDLE, {"If-None-Match": etag})
        self.assertEqual((status, body), (304, b""))
        self.assertEqual(set(headers), {"Date"})
        for other in (f"W/{etag}", f'{etag}, "x"', "*", etag.strip('"')):
            self.assertEqual(fetch(BUNDLE, {"If-None-Match": other})[0], 200, other)

    def test_connection_is_kept(self):
        connection = trusting()
        for path in (DISCOVERY, BUNDLE, "/x", DISCOVERY):
            connection.request("GET", path, headers=JSON)
            connection.getresponse().read()
            self.assertIsNotNone(connection.sock)
        connection.close()


class Tls(unittest.TestCase):
    def test_tls_1_3_only(self):
        connection = trusting()
        self.assertEqual((connection.sock.version(), connection.sock.selected_alpn_protocol()), ("TLSv1.3", "http/1.1"))
        connection.close()
        with self.assertRaises(ssl.SSLError):
            trusting(maximum=ssl.TLSVersion.TLSv1_2)

    def test_name_is_that_of_the_mis(self):
        with self.assertRaises(ssl.SSLCertVerificationError):
            trusting(name="127.0.0.1")

    def test_chain_is_certificate_and_ca(self):
        connection = trusting()
        chain = [cert.public_bytes() for cert in connection.sock._sslobj.get_unverified_chain()]
        connection.close()
        leaf, ca = (x509.load_pem_x509_certificate(cert.encode()) for cert in chain)
        self.assertEqual(ca.public_key().key_size, 4096)
        self.assertEqual(ca.subject, ca.issuer)
        leaf.verify_directly_issued_by(ca)
        rules.https_ca(Path(directory.name, "https-ca.crt").read_bytes())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(list(names), [x509.DNSName("mis.margo.org")])

    def test_url_host_for_loopback(self):
        with Another("--url-host", "127.0.0.1") as other:
            document = json.loads(fetch_at(other.address, DISCOVERY, "127.0.0.1")[2])
        self.assertEqual(document["trustBundleUri"], f"{other.address}{BUNDLE}")


class Another:
    """A further MIS in a directory of its own, with the same authorities."""

    def __init__(self, *switches):
        self.switches = switches

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory()
        for name in ("ca.crt", "ca.key", "https-ca.crt", "https-ca.key"):
            Path(self.directory.name, name).write_bytes(Path(directory.name, name).read_bytes())
        self.program = programs.Program(
            "mis.py", "serve", "--directory", self.directory.name, "--port", 0, *self.switches, server=True
        )
        return self.program

    def __exit__(self, *_):
        self.program.stop()
        self.directory.cleanup()


def fetch_at(address, path, name="mis.margo.org"):
    global host, port
    before, target = (host, port), urlsplit(address)
    host, port = target.hostname, target.port
    try:
        connection = trusting(name=name)
        connection.request("GET", path, headers=JSON)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        host, port = before
        connection.close()


class Mint(unittest.TestCase):
    def setUp(self):
        self.output = tempfile.TemporaryDirectory()
        self.addCleanup(self.output.cleanup)

    def mint(self, *arguments):
        command = [
            sys.executable,
            programs.HERE / "mis.py",
            "mint",
            "x509",
            "--directory",
            directory.name,
            "--outputDir",
            self.output.name,
            *map(str, arguments),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=programs.PATIENCE)

    def csr(self, uris=(pki.CLIENT,), key=None, edit=lambda pem: pem, subject=()):
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
        if uris:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
            builder = builder.add_extension(names, critical=False)
        signed = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256())
        path = Path(self.output.name, "csr.pem")
        path.write_bytes(edit(signed.public_bytes(Encoding.PEM)))
        return path

    def minted(self, *arguments):
        done = self.mint(*arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        blocks = rules.PEM_BLOCK.findall(Path(self.output.name, "payload-cert.pem").read_bytes())
        self.assertEqual(len(blocks), 1)
        return x509.load_der_x509_certificate(base64.b64decode(blocks[0][1]))

    def refused(self, words, *arguments):
        done = self.mint(*arguments)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(words, done.stderr)
        self.assertFalse(Path(self.output.name, "payload-cert.pem").exists())

    def test_mint_profile(self):
        cert = self.minted("--csrPath", self.csr(), "--ttl", 7776000, "--dns", "a.example", "--dns", "b.example")
        ca = x509.load_pem_x509_certificate(Path(directory.name, "ca.crt").read_bytes())
        cert.verify_directly_issued_by(ca)
        self.assertEqual(cert.signature_algorithm_oid.dotted_string, "1.2.840.10045.4.3.2")
        self.assertEqual(cert.subject.rfc4514_string(), "O=margo.org")
        self.assertEqual((cert.not_valid_after_utc - cert.not_valid_before_utc).total_seconds(), 7776000)
        self.assertLessEqual(abs((rules.now() - cert.not_valid_before_utc).total_seconds()), 600)
        self.assertLess(cert.serial_number.bit_length(), 129)
        self.assertEqual(
            [(extension.oid._name, extension.critical) for extension in cert.extensions],
            [
                ("keyUsage", True),
                ("extendedKeyUsage", False),
                ("basicConstraints", True),
                ("authorityKeyIdentifier", False),
                ("subjectAltName", False),
            ],
        )
        names = rules.extension(cert, x509.SubjectAlternativeName)
        self.assertEqual(
            list(names),
            [x509.DNSName("a.example"), x509.DNSName("b.example"), x509.UniformResourceIdentifier(pki.CLIENT)],
        )
        self.assertEqual(
            rules.extension(cert, x509.ExtendedKeyUsage), x509.ExtendedKeyUsage([pki.SERVER_AUTH, pki.CLIENT_AUTH])
        )
        self.assertTrue(rules.extension(cert, x509.KeyUsage).digital_signature)
        self.assertEqual(Path(self.output.name, "payload-cert.pem").stat().st_mode & 0o777, 0o600)
        self.assertFalse(Path(self.output.name, "payload-key.pem").exists())

    def test_mint_authority(self):
        ca = x509.load_pem_x509_certificate(Path(directory.name, "ca.crt").read_bytes())
        usage = rules.extension(ca, x509.KeyUsage)
        self.assertTrue(usage.key_cert_sign and usage.crl_sign)
        self.assertEqual(ca.subject, ca.issuer)
        self.assertTrue(ca.subject.rfc4514_string().startswith("CN=margo.org"))
        self.assertIsNone(rules.extension(ca, x509.SubjectAlternativeName))

    def test_mint_for_a_day_by_default(self):
        cert = self.minted("--csrPath", self.csr())
        self.assertEqual((cert.not_valid_after_utc - cert.not_valid_before_utc).total_seconds(), 86400)

    def test_mint_signs_whatever_the_csr_names(self):
        for uri in (
            "spiffe://elsewhere.org/x",
            f"{pki.WFM}/client/..",
            f"{pki.WFM}/client/~",
            f"{pki.WFM}/client/%41",
            pki.DEVICE,
        ):
            cert = self.minted("--csrPath", self.csr([uri]))
            self.assertEqual(rules.only_uri(cert, "certificate"), uri)
            self.assertEqual(cert.subject.rfc4514_string(), f"O={rules.domain_of(uri)}")

    def test_mint_takes_each_kind_of_key(self):
        for key in (
            rsa.generate_private_key(65537, 2048),
            ec.generate_private_key(ec.SECP384R1()),
            ed25519.Ed25519PrivateKey.generate(),
        ):
            cert = self.minted("--csrPath", self.csr(key=key))
            self.assertEqual(rules.spki(cert.public_key()), rules.spki(key.public_key()))

    def test_mint_wants_one_uri_of_spiffe(self):
        self.refused("exactly one URI SAN, got 0", "--csrPath", self.csr([]))
        self.refused("exactly one URI SAN, got 2", "--csrPath", self.csr([pki.CLIENT, pki.WFM]))
        self.refused("scheme must be 'spiffe'", "--csrPath", self.csr(["https://margo.org/margo/wfm/a/client/b"]))

    def test_mint_wants_pem(self):
        self.refused(
            "must be 'CERTIFICATE REQUEST'",
            "--csrPath",
            self.csr(edit=lambda pem: pem.replace(b"CERTIFICATE REQUEST", b"NEW CERTIFICATE REQUEST")),
        )
        self.refused("failed to decode PEM", "--csrPath", self.csr(edit=lambda pem: b"".join(pem.splitlines()[1:-1])))

    def test_mint_wants_a_signature_that_verifies(self):
        def spoiled(pem):
            der = bytearray(base64.b64decode(b"".join(pem.splitlines()[1:-1])))
            der[-1] ^= 1
            return b"-----BEGIN CERTIFICATE REQUEST-----\n%s\n-----END CERTIFICATE REQUEST-----\n" % base64.b64encode(
                der
            )

        self.refused("signature verification failed", "--csrPath", self.csr(edit=spoiled))

    def test_mint_makes_the_key_for_a_spiffe_id(self):
        cert = self.minted("--spiffeID", pki.WFM)
        path = Path(self.output.name, "payload-key.pem")
        self.assertTrue(path.read_bytes().startswith(b"-----BEGIN EC PRIVATE KEY-----\n"))
        self.assertEqual(path.stat().st_mode & 0o777, 0o400)
        self.assertEqual(
            rules.spki(load_pem_private_key(path.read_bytes(), None).public_key()), rules.spki(cert.public_key())
        )
        self.assertEqual(rules.only_uri(cert, "certificate"), pki.WFM)
        self.minted("--spiffeID", pki.WFM)  # over the files of before

    def test_mint_refuses_an_id_without_a_path(self):
        self.refused("path cannot be empty", "--spiffeID", "spiffe://margo.org/")

    def test_mint_refuses_a_ttl_of_nothing(self):
        self.refused("invalid TTL 0", "--csrPath", self.csr(), "--ttl", 0)


if __name__ == "__main__":
    unittest.main()
