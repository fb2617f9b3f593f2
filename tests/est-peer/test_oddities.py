"""Each oddity, and how long it lasts."""

import base64
import http.client
import unittest

from cryptography.hazmat.primitives.serialization import Encoding

import oddities
from der import names_of_certificate
from peer import ID, PKCS10, SERVER, Peer, basic, certificates, encoded, request

# What OpenSSL does not read either.
UNREADABLE = {
    "attribute-certificate",
    "bare-certificate",
    "cut-short",
    "enveloped",
    "long-lengths",
    "no-certificates",
    "unreadable-element",
}


def setUpModule():
    global peer
    peer = Peer("--user", "device", "s:cret", ID)
    unittest.addModuleCleanup(peer.stop)




class Oddities(unittest.TestCase):
    def setUp(self):
        for operation in ("cacerts", "simpleenroll", "simplereenroll"):
            peer.order(operation)

    def enroll(self, *odd):
        peer.order("simpleenroll", *odd, times=1)
        return peer.enroll(request())

    def test_every_content(self):
        for one in oddities.CONTENTS:
            with self.subTest(one):
                status, _, body = self.enroll(one)
                self.assertEqual(status, 200)
                if one not in UNREADABLE:
                    self.assertTrue(certificates(body))
                elif one not in ("no-certificates", "long-lengths"):
                    # Whether lengths that are not minimal are read differs from one OpenSSL to the next.
                    self.assertRaises(Exception, certificates, body)

    def test_ber_is_of_indefinite_length(self):
        data = base64.b64decode(self.enroll("ber")[2])
        self.assertEqual((data[:2], data[-2:]), (b"\x30\x80", b"\x00\x00"))

    def test_every_body(self):
        for one, form in oddities.BODIES.items():
            with self.subTest(one):
                status, headers, body = self.enroll(one)
                self.assertEqual((status, headers["Content-Type"]), (200, oddities.CERTS_ONLY))
                self.assertEqual(len(body), int(headers["Content-Length"]))
        self.assertNotIn(b"=", oddities.BODIES["no-padding"](b"ab"))
        for size in range(3):
            self.assertRaises(ValueError, base64.b64decode, oddities.BODIES["no-padding"](b"abc" + b"d" * size))

    def test_every_media_type(self):
        for one, value in {**oddities.TYPES}.items():
            self.assertEqual(self.enroll(one)[1]["Content-Type"], value)
        self.assertEqual(self.enroll("encoding-binary")[1]["Content-Transfer-Encoding"], "binary")

    def test_every_leaf(self):
        for one in oddities.LEAVES:
            with self.subTest(one):
                self.assertEqual(len(certificates(self.enroll(one)[2])), 1)
        leaf = certificates(self.enroll("leaf-with-san-not-critical")[2])[0]
        san = names_of_certificate(leaf.public_bytes(Encoding.DER))[1]
        self.assertFalse(san[0])

    def test_every_bag(self):
        sizes = {}
        for one in oddities.BAGS:
            peer.order("cacerts", one, times=1)
            status, _, body = peer.fetch("cacerts")
            self.assertEqual(status, 200)
            sizes[one] = len(certificates(body))
            self.assertLess(len(body), 256 * 1024)
        expected = {"without-root": 1, "without-intermediate": 1, "strange-roots": 5, "shuffled": 6}
        self.assertEqual(sizes, {**expected, "expired-twins": 4, "rollover": 5, "crowd": 402, "twice": 4})

    def test_every_answer(self):
        for one in oddities.ANSWERS.keys() - {"202-bare"}:
            with self.subTest(one):
                status, headers, body = self.enroll(one)
                self.assertEqual(status, int(one[:3]))
                if status != 204:
                    self.assertEqual(len(body), int(headers["Content-Length"]))
                self.assertEqual(headers["Retry-After"], None)

    def test_retry_after(self):
        for one in ("202", "429", "503"):
            self.assertEqual(self.enroll(f"{one}=600")[1]["Retry-After"], "600")

    def test_echo_has_the_credentials(self):
        self.assertIn(basic("device", "s:cret")["Authorization"].encode(), self.enroll("500-json-echo")[2])

    def test_bare_202_leaves_the_connection_open(self):
        peer.order("simpleenroll", "202-bare=60", times=1)
        host = peer.address.removeprefix("https://")
        connection = http.client.HTTPSConnection(host, context=peer.context(), timeout=1)
        self.addCleanup(connection.close)
        headers = {**PKCS10, **basic("device", "s:cret")}
        connection.request("POST", "/.well-known/est/simpleenroll", encoded(request()), headers)
        response = connection.getresponse()
        self.assertEqual((response.status, response.headers["Retry-After"]), (202, "60"))
        self.assertEqual((response.headers["Content-Length"], response.headers["Content-Type"]), (None, None))
        self.assertRaises(TimeoutError, response.read)

    def test_cuts(self):
        for one in ("cut", "cut-issued"):
            self.assertRaises(http.client.RemoteDisconnected, self.enroll, one)
            self.assertEqual("serial" in peer.next("request"), one == "cut-issued")
        self.assertRaises(http.client.IncompleteRead, self.enroll, "cut-body")

    def test_orders_end_by_themselves(self):
        peer.order("simpleenroll", "503", times=2)
        self.assertEqual([peer.enroll(request())[0] for _ in range(3)], [503, 503, 200])
        peer.order("simpleenroll", "503")
        self.assertEqual([peer.enroll(request())[0] for _ in range(3)], [503, 503, 503])
        peer.order("simpleenroll")
        self.assertEqual(peer.enroll(request())[0], 200)

    def test_several_at_once(self):
        status, headers, body = self.enroll("ber", "one-line", "type-in-capitals", "leaf-without-san")
        self.assertEqual((status, headers["Content-Type"]), (200, oddities.TYPES["type-in-capitals"]))
        self.assertEqual(body.split(), [body])
        self.assertEqual(len(certificates(body)), 1)

    def test_orders_that_are_none(self):
        self.assertIn("error", peer.order("simpleenroll", "no-such-thing"))
        self.assertIn("error", peer.order("no-such-operation", "ber"))


class Names(unittest.TestCase):
    def test_no_name_stands_for_two_things(self):
        kinds = (
            oddities.CONTENTS,
            oddities.BODIES,
            oddities.TYPES,
            oddities.ENCODINGS,
            oddities.LEAVES,
            oddities.BAGS,
            oddities.ANSWERS,
            oddities.CUTS,
        )
        self.assertEqual(sum(map(len, kinds)), len(oddities.NAMES))

    def test_readme_names_each(self):
        text = SERVER.with_name("README.md").read_text()
        self.assertEqual([one for one in sorted(oddities.NAMES) if f"`{one}`" not in text], [])



if __name__ == "__main__":
    unittest.main()
