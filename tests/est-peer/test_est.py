"""The server over HTTPS, as it is without oddities."""

import base64
import ssl
import subprocess
import unittest

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.serialization import pkcs7 as reader

from ca import name, new_key, uri_san
from der import names_of_certificate
from peer import ID, PKCS10, Peer, basic, certificates, encoded, request

CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
TABLE = ("--user", "device", "s:cret", ID)


class Case(unittest.TestCase):
    options = TABLE

    @classmethod
    def setUpClass(cls):
        cls.peer = Peer(*cls.options)
        cls.addClassCleanup(cls.peer.stop)

    def issued(self, response):
        status, headers, body = response
        self.assertEqual((status, headers["Content-Type"]), (200, CERTS_ONLY), body)
        (leaf,) = certificates(body)
        leaf.verify_directly_issued_by(
            x509.load_pem_x509_certificate((self.peer.directory / "intermediate.crt").read_bytes())
        )
        return leaf


def names(leaf):
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return san.critical, san.value.get_values_for_type(x509.UniformResourceIdentifier)


class Table(Case):
    """SPIFFE IDs by user name."""

    def test_cacerts(self):
        status, headers, body = self.peer.fetch("cacerts")
        self.assertEqual((status, headers["Content-Type"]), (200, "application/pkcs7-mime"))
        self.assertEqual(
            {one.subject.rfc4514_string() for one in certificates(body)}, {"CN=Issuing CA", "CN=Root CA"}
        )
        self.assertEqual(len(reader.load_der_pkcs7_certificates(base64.b64decode(body))), 2)
        self.assertTrue(all(len(line) <= 76 for line in body.split(b"\r\n")))

    def test_first_enrollment(self):
        key = new_key()
        leaf = self.issued(self.peer.enroll(request(key)))
        self.assertEqual(leaf.public_key(), key.public_key())
        self.assertEqual(names(leaf), (True, [ID]))
        line = self.peer.next("serial", f"{leaf.serial_number:x}")
        self.assertTrue(line["authorization"])
        self.assertNotIn("cret", str(line))

    def test_subject_of_the_request_is_kept(self):
        leaf = self.issued(self.peer.enroll(request(common_name="line-7")))
        self.assertEqual(leaf.subject, name("line-7"))
        self.assertEqual(names(leaf), (False, [ID]))

    def test_san_of_the_request_is_not(self):
        asked = (True, uri_san("spiffe://factory.example/other"))
        self.assertEqual(names(self.issued(self.peer.enroll(request(san=asked)))), (True, [ID]))

    def test_without_credentials(self):
        status, headers, _ = self.peer.fetch("simpleenroll", encoded(request()), PKCS10)
        self.assertEqual((status, headers["WWW-Authenticate"].split()[0]), (401, "Basic"))

    def test_wrong_secret_and_unknown_user_look_alike(self):
        wrong = [self.peer.enroll(request(), secret="other"), self.peer.enroll(request(), user="unknown")]
        self.assertEqual({(status, body) for status, _, body in wrong}, {(401, b"Unauthorized\n")})

    def test_each_form_of_base64(self):
        data = request()
        for body in (
            base64.b64encode(data),
            base64.encodebytes(data),
            base64.encodebytes(data).replace(b"\n", b"\r\n"),
            b" " + base64.b64encode(data) + b"\t",
        ):
            self.assertEqual(self.peer.fetch("simpleenroll", body, {**PKCS10, **basic("device", "s:cret")})[0], 200)

    def test_broken_requests(self):
        data = request()
        tampered = bytearray(data)
        tampered[-1] ^= 1
        pem = b"-----BEGIN CERTIFICATE REQUEST-----\n" + encoded(data) + b"-----END CERTIFICATE REQUEST-----\n"
        for body in (data, pem, b"", b"%%%", encoded(b"\x30\x00"), encoded(data + b"\x00"), encoded(bytes(tampered))):
            status, _, _ = self.peer.fetch("simpleenroll", body, {**PKCS10, **basic("device", "s:cret")})
            self.assertEqual(status, 400, body)

    def test_wrong_media_type(self):
        self.assertEqual(self.peer.fetch("simpleenroll", encoded(request()), basic("device", "s:cret"))[0], 415)

    def test_unknown_paths_and_methods(self):
        self.assertEqual(self.peer.fetch("csrattrs")[0], 404)
        self.assertEqual(self.peer.fetch("simpleenroll")[0], 405)
        self.assertEqual(self.peer.fetch("a/cacerts")[0], 404)
        self.assertEqual(self.peer.fetch("cacerts", label=None)[0], 200)

    def test_request_that_is_too_large(self):
        self.assertEqual(self.peer.enroll(b"x" * 60000)[0], 413)

    def test_renewal(self):
        key = new_key()
        first = self.issued(self.peer.enroll(request(key)))
        identity = self.peer.identity(key, first)
        _, san = names_of_certificate(first.public_bytes(Encoding.DER))

        def renew(data):
            return self.peer.fetch("simplereenroll", encoded(data), PKCS10, identity)

        self.assertEqual(names(self.issued(renew(request(key, san=san)))), (True, [ID]))
        other = new_key()
        leaf = self.issued(renew(request(other, san=san)))
        self.assertEqual(leaf.public_key(), other.public_key())
        self.assertEqual(names(self.issued(renew(request(key, san=(False, san[1]))))), (False, [ID]), "criticality")
        self.assertEqual(renew(request(key))[0], 403)
        self.assertEqual(renew(request(key, san=san, common_name="a"))[0], 403)
        self.assertEqual(renew(request(key, san=(True, uri_san(ID, ID))))[0], 403)

    def test_renewal_without_certificate(self):
        self.assertEqual(self.peer.enroll(request(), operation="simplereenroll")[0], 403)

    def test_tls_1_2_is_refused(self):
        context = self.peer.context(maximum=ssl.TLSVersion.TLSv1_2)
        host, _, port = self.peer.address.removeprefix("https://").partition(":")
        with self.assertRaises(ssl.SSLError), ssl.create_connection((host, int(port))) as plain:
            context.wrap_socket(plain, server_hostname=host)

    def test_rollover_leads_to_the_next_root(self):
        key, directory = new_key(), self.peer.directory
        leaf = self.issued(self.peer.enroll(request(key)))
        self.peer.order("cacerts", "rollover", times=1)
        bag = certificates(self.peer.fetch("cacerts")[2])
        self.assertEqual(len(bag), 5)
        pem = Encoding.PEM
        (directory / "bag.pem").write_bytes(b"".join(one.public_bytes(pem) for one in bag if one.subject != one.issuer))
        # OldWithNew is the one with the key of the old root that the old root did not sign.
        old = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
        links = [one for one in bag if one.public_key() == old.public_key() and one != old]
        with open(directory / "bag.pem", "ab") as file:
            file.writelines(one.public_bytes(pem) for one in links)
        (directory / "leaf.pem").write_bytes(leaf.public_bytes(pem))
        files = ["-CAfile", directory / "rollover.crt", "-untrusted", directory / "bag.pem", directory / "leaf.pem"]
        run = subprocess.run(["openssl", "verify", "-no-CApath", *files], capture_output=True, text=True)
        self.assertEqual(run.returncode, 0, run.stderr)


class Copies(Case):
    """A generic server that issues what is asked for."""

    options = ("--user", "device", "s:cret", "--copy-san", "--require-subject", "--wrong-secret", "403")

    def test_san_is_copied_byte_for_byte(self):
        asked = (True, uri_san("spiffe://factory.example/any"))
        leaf = self.issued(self.peer.enroll(request(common_name="a", san=asked)))
        self.assertEqual(names_of_certificate(leaf.public_bytes(Encoding.DER))[1], asked)

    def test_without_san(self):
        leaf = self.issued(self.peer.enroll(request(common_name="a")))
        self.assertRaises(
            x509.ExtensionNotFound, leaf.extensions.get_extension_for_class, x509.SubjectAlternativeName
        )

    def test_empty_subject(self):
        status, headers, body = self.peer.enroll(request())
        self.assertEqual((status, headers["Content-Length"], body), (500, "0", b""))

    def test_wrong_secret(self):
        self.assertEqual(self.peer.enroll(request(common_name="a"), secret="x")[0], 403)


class OneLine(Case):
    options = (*TABLE, "--request", "one-line", "--base64", "one-line", "--label", "one", "--wrong-secret", "close")

    def test_request_and_response(self):
        data, headers = request(), {**PKCS10, **basic("device", "s:cret")}
        self.assertEqual(self.peer.fetch("simpleenroll", encoded(data), headers, label="one")[0], 400)
        self.assertEqual(self.peer.fetch("simpleenroll", base64.b64encode(data) + b"\n", headers, label="one")[0], 400)
        status, _, body = self.peer.fetch("simpleenroll", base64.b64encode(data), headers, label="one")
        self.assertEqual((status, body.split()), (200, [body]))

    def test_label(self):
        self.assertEqual(self.peer.fetch("cacerts", label="one")[0], 200)
        self.assertEqual(self.peer.fetch("cacerts", label="two")[0], 404)
        self.assertEqual(self.peer.fetch("cacerts", label=None)[0], 404)

    def test_wrong_secret(self):
        headers = {**PKCS10, **basic("device", "x")}
        status, headers, _ = self.peer.fetch("simpleenroll", base64.b64encode(request()), headers, label="one")
        self.assertEqual((status, headers["WWW-Authenticate"], headers["Connection"]), (401, None, "close"))


class Lines(Case):
    options = (*TABLE, "--request", "lines", "--tls", "1.2", "--client-certificates", "none")

    def test_request(self):
        data, headers = request(), {**PKCS10, **basic("device", "s:cret")}
        self.assertEqual(self.peer.fetch("simpleenroll", base64.b64encode(data), headers)[0], 400)
        self.assertEqual(self.peer.fetch("simpleenroll", encoded(data), headers)[0], 200)
        self.assertEqual(self.peer.next("serial")["tls"], "TLSv1.2")


class Certificates(unittest.TestCase):
    """Enrollment with a certificate that was registered."""

    def test_registered_certificate(self):
        operator = Peer("--user", "device", "s:cret", "--copy-san")
        self.addCleanup(operator.stop)
        keys = [new_key(), new_key()]
        leaves = [
            certificates(operator.enroll(request(key, common_name=one))[2])[0] for key, one in zip(keys, "ab")
        ]
        identities = [operator.identity(key, leaf) for key, leaf in zip(keys, leaves)][:1]
        registered = operator.directory / "registered.crt"
        registered.write_bytes(leaves[1].public_bytes(Encoding.PEM))
        peer = Peer("--certificate", registered, ID, "--client-ca", operator.directory / "ca.crt")
        self.addCleanup(peer.stop)
        # The files are those of the last one.
        status, _, body = peer.fetch("simpleenroll", encoded(request()), PKCS10, identities[0])
        self.assertEqual((status, names(certificates(body)[0])), (200, (True, [ID])))
        operator.identity(keys[0], leaves[0])
        self.assertEqual(peer.fetch("simpleenroll", encoded(request()), PKCS10, identities[0])[0], 403)
        self.assertEqual(peer.fetch("simplereenroll", encoded(request()), PKCS10, identities[0])[0], 403)
        self.assertEqual(peer.fetch("simpleenroll", encoded(request()), PKCS10)[0], 401)


if __name__ == "__main__":
    unittest.main()
