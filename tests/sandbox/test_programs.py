"""The client against both WFMs and the MIS, as processes on loopback ports."""

import http.client
import json
import os
import socket
import ssl
import tempfile
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from tlslite.api import HandshakeSettings, TLSConnection
from tlslite.errors import BaseTLSException, TLSRemoteAlert

import mis
import mtls
import party
import pki
import programs

ROOT = pki.ca("root")
SYMPHONY, TOOLKIT = ("--mode", "symphony"), ("--mode", "toolkit")


class World(unittest.TestCase):
    """A directory with the files of a client and of a WFM."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.path = Path(temporary.name)
        self.bundle = self.file("bundle.json", pki.bundle(ROOT))
        self.ca = self.file("ca.pem", ROOT.pem)
        self.client_svid, self.wfm_svid = pki.leaf(ROOT), pki.leaf(ROOT, pki.WFM)
        self.authorized = self.listed("authorized.json", pki.WFM)
        self.clients = self.listed("clients.json", pki.CLIENT)

    def file(self, name, data):
        path = self.path / name
        path.write_bytes(data)
        return path

    def listed(self, name, *ids):
        """A list of SPIFFE IDs, put in place by a rename."""
        path = self.path / name
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(json.dumps(ids))
        os.rename(fresh, path)
        return path

    def credential(self, holder, name, *further):
        cert = self.file(f"{name}.pem", b"".join([holder.pem, *(cert.pem for cert in further)]))
        return "--cert", cert, "--key", self.file(f"{name}.key", pki.key_pem(holder.key))

    def start(self, name, *arguments, server=False):
        program = programs.Program(name, *arguments, server=server)
        self.addCleanup(program.stop)
        return program

    def symphony(self, holder=None, *further):
        own = self.credential(holder or self.wfm_svid, "wfm", *further)
        program = self.start(
            "wfm.py", *SYMPHONY, *own, "--bundle", self.bundle, "--authz", self.clients, "--port", 0, server=True
        )
        program.next(check="authorized-domain")
        return program

    def toolkit(self, *switches):
        own = self.credential(self.wfm_svid, "wfm")
        return self.start("wfm.py", *TOOLKIT, *own, "--ca", self.ca, "--port", 0, *switches, server=True)

    def client(self, wfm, *switches, holder=None, further=(), bundle=None, authorized=None):
        own = self.credential(holder or self.client_svid, "client", *further)
        source = ("--bundle", bundle or self.bundle) if bundle is not False else ()
        return self.start(
            "client.py",
            *own,
            *source,
            "--authz",
            authorized or self.authorized,
            "--wfm",
            f"{wfm.address}/v1alpha2/margo",
            *switches,
        )

    def connected(self, wfm, holder):
        """A connection by a client that takes any WFM."""
        target = urlsplit(wfm.address)
        connection = http.client.HTTPConnection(target.hostname, target.port)
        credential = mtls.Credential([holder.cert], holder.key)
        connection.sock = mtls.connect((target.hostname, target.port), target.hostname, credential, lambda chain: None)
        self.addCleanup(connection.sock.sock.close)
        return connection

    def status(self, connection):
        connection.request("GET", "/v1alpha2/margo/api/v1/deployments")
        response = connection.getresponse()
        response.read()
        return response.status


class Symphony(World):
    def test_client_and_wfm_accept_each_other(self):
        wfm = self.symphony()
        client = self.client(wfm)
        seen = client.next(connection=1)
        self.assertEqual((seen["result"], seen["peer"], seen["status"]), ("accepted", pki.WFM, 200))
        self.assertEqual(json.loads(seen["body"]), {"bundle": None, "deployments": [], "manifestVersion": 1})
        self.assertEqual(client.end(), 0)
        accepted = wfm.next(connection=1)
        self.assertEqual((accepted["peer"], accepted["serial"]), (pki.CLIENT, self.client_svid.serial))
        self.assertEqual(wfm.next(status=200)["request"], "GET /v1alpha2/margo/api/v1/deployments")
        checks = [line["check"] for line in client.read if "connection" not in line]
        self.assertEqual(
            checks,
            [
                "certificate",
                "key",
                "bundle-file",
                "authorized",
                "key-pair",
                "bundle-fetched",
                "trust-domain",
                "bundle",
                "own-domain",
                "chain",
                "authorized-domain",
            ],
        )

    def test_client_refuses_another_wfm_before_it_sends_a_request(self):
        """The list names it: it is the wfm-id that does not fit."""
        other = f"spiffe://{pki.DOMAIN}/margo/wfm/wfm-2"
        self.listed("authorized.json", pki.WFM, other)
        self.listed("clients.json", pki.CLIENT, f"{other}/client/dev-1")
        wfm = self.symphony(pki.leaf(ROOT, other))
        client = self.client(wfm)
        self.assertEqual(client.next(connection=1)["check"], "peer-same-wfm")
        self.assertEqual(client.end(), 4)
        self.assertNotIn("request", str([wfm.next(connection=1), *wfm.read]))

    def test_wfm_refuses_a_client_outside_its_list(self):
        self.listed("clients.json", f"{pki.WFM}/client/dev-2")
        wfm = self.symphony()
        client = self.client(wfm)
        failed = client.next(connection=1)
        self.assertEqual((failed["result"], failed["during"]), ("failed", "request"))
        self.assertIn("bad_certificate", failed["reason"])
        self.assertEqual(client.end(), 5)
        self.assertEqual(wfm.next(connection=1)["check"], "peer-allow-list")

    def test_wfm_repeats_the_list_for_each_request(self):
        wfm = self.symphony()
        connection = self.connected(wfm, self.client_svid)
        self.assertEqual(self.status(connection), 200)
        self.listed("clients.json", f"{pki.WFM}/client/dev-2")
        wfm.next(event="authorized", result="replaced")
        self.assertEqual(self.status(connection), 401)

    def test_wfm_refuses_a_client_without_a_certificate(self):
        wfm = self.symphony()
        target = urlsplit(wfm.address)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection((target.hostname, target.port)) as plain, self.assertRaises(ssl.SSLError):
            with context.wrap_socket(plain) as secured:
                secured.sendall(b"GET /v1alpha2/margo/api/v1/deployments HTTP/1.1\r\nHost: x\r\n\r\n")
                self.assertEqual(secured.recv(1), b"")
        self.assertEqual(wfm.next(connection=1)["check"], "peer-certificate")

    def test_wfm_refuses_tls_1_2(self):
        self.assertEqual(self.tls_1_2(self.symphony()), "failed")

    def test_wfm_refuses_a_certificate_of_a_client_as_its_own(self):
        wfm = self.start(
            "wfm.py",
            *SYMPHONY,
            *self.credential(self.client_svid, "wfm"),
            "--bundle",
            self.bundle,
            "--authz",
            self.clients,
            "--port",
            0,
            server=True,
        )
        self.assertEqual(wfm.next(result="refused")["check"], "certificate")
        self.assertEqual(wfm.end(), 3)

    def test_each_kind_of_key_and_an_intermediate_on_the_wire(self):
        """Its file's intermediates go to the peer, although its own start takes the second key of the bundle."""
        intermediate = pki.ca("intermediate", ROOT)
        both = self.file("both.json", pki.bundle(ROOT, intermediate))
        wfm = self.symphony()
        for key in (
            ec.generate_private_key(ec.SECP384R1()),
            ed25519.Ed25519PrivateKey.generate(),
            rsa.generate_private_key(65537, 3072),
        ):
            holder = pki.leaf(intermediate, key=key)
            client = self.client(wfm, holder=holder, further=[intermediate], bundle=both)
            self.assertEqual(client.next(connection=1).get("status"), 200, client.read)
            self.assertEqual(client.end(), 0)

    def tls_1_2(self, wfm):
        """The first line of a response over TLS 1.2."""
        target, chosen = urlsplit(wfm.address), HandshakeSettings()
        chosen.minVersion = chosen.maxVersion = (3, 3)
        credential = mtls.Credential([self.client_svid.cert], self.client_svid.key)
        with socket.create_connection((target.hostname, target.port)) as plain:
            connection = TLSConnection(plain)
            try:
                connection.handshakeClientCert(credential.chain, credential.key, settings=chosen)
                connection.write(b"GET /v1alpha2/margo/api/v1/deployments HTTP/1.1\r\nHost: x\r\n\r\n")
                return bytes(connection.read(max=64, min=12)).split(b"\r\n")[0].decode()
            except BaseTLSException:
                return "failed"


class OtherServer(World):
    def test_client_with_a_server_of_openssl(self):
        """Which validates the client's certificate in its own way."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version, context.verify_mode = ssl.TLSVersion.TLSv1_3, ssl.CERT_REQUIRED
        context.load_verify_locations(self.ca)
        context.load_cert_chain(*self.credential(self.wfm_svid, "server")[1::2])
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(programs.PATIENCE)
            client = self.start(
                "client.py",
                *self.credential(self.client_svid, "client"),
                "--bundle",
                self.bundle,
                "--authz",
                self.authorized,
                "--wfm",
                f"https://127.0.0.1:{listener.getsockname()[1]}",
            )
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as secured:
                self.assertTrue(secured.recv(4096).startswith(b"GET /api/v1/deployments HTTP/1.1\r\n"))
                secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                self.assertEqual(client.next(connection=1)["body"], "{}")
        self.assertEqual(client.end(), 0)


class Toolkit(World):
    def test_toolkit_needs_no_entry_for_a_client(self):
        wfm = self.toolkit()
        client = self.client(wfm, holder=pki.leaf(ROOT, f"{pki.WFM}/client/another"))
        self.assertEqual(client.next(connection=1)["status"], 200)
        self.assertEqual(client.end(), 0)

    def test_toolkit_refuses_a_client_of_another_wfm(self):
        wfm = self.toolkit()
        foreign = pki.leaf(ROOT, f"spiffe://{pki.DOMAIN}/margo/wfm/wfm-2/client/dev-1")
        for holder, check in ((foreign, "peer-form"), (pki.leaf(ROOT, eku=(pki.SERVER_AUTH,)), "peer-chain")):
            connection = self.connected(wfm, holder)
            with self.assertRaises(TLSRemoteAlert):
                self.status(connection)
            self.assertEqual(wfm.next(result="refused")["check"], check)

    def test_toolkit_accepts_tls_1_2(self):
        self.assertEqual(Symphony.tls_1_2(self, self.toolkit()), "HTTP/1.1 200 OK")

    def test_toolkit_health_port(self):
        wfm = self.toolkit("--health-port", 0)
        address = wfm.line().removeprefix("health on ")
        wfm.next(check="ca")
        context = ssl._create_unverified_context()
        with urllib.request.urlopen(f"{address}/health", context=context) as response:
            self.assertEqual(response.status, 200)
        with self.assertRaises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{address}/v1alpha2/margo/api/v1/deployments", context=context)
        problem = json.load(caught.exception)
        caught.exception.close()
        self.assertEqual((problem["status"], problem["type"]), (403, mis.TYPES + "not-authorized"))


class Start(World):
    """What the client's start makes of its files, by process: the exit status and the name of the check."""

    def refused(self, check, **files):
        own = {
            "cert": self.credential(self.client_svid, "client")[1],
            "key": self.path / "client.key",
            "bundle": self.bundle,
            "authz": self.authorized,
            **files,
        }
        switches = [
            part for name, path in own.items() if path is not None for part in (f"--{name.replace('_', '-')}", path)
        ]
        client = self.start("client.py", *switches, "--wfm", "https://127.0.0.1:9")
        self.assertEqual(client.next(result="refused")["check"], check)
        self.assertEqual(client.end(), 3)

    def test_start_names_the_check_that_refused(self):
        self.refused("certificate", cert=self.file("device.pem", pki.leaf(ROOT, pki.DEVICE).pem))
        self.refused("key", key=self.file("both.key", self.client_svid.pem + pki.key_pem(self.client_svid.key)))
        self.refused("key-pair", key=self.file("other.key", pki.key_pem(ROOT.key)))
        self.refused("bundle", bundle=self.file("none.json", b'{"keys":[]}'))
        self.refused("bundle-file", bundle=self.path / "missing.json")
        self.refused("bundle-fetched", bundle=None)
        self.refused("chain", bundle=self.file("other.json", pki.bundle(pki.ca("other"))))
        self.refused("authorized", authz=self.file("empty.json", b"[]"))
        self.refused("trust-domain", trust_domain="factory")
        self.refused("own-domain", trust_domain="other.org")
        self.refused(
            "https-ca",
            mis="https://127.0.0.1:9",
            https_ca=self.file("weak.crt", pki.ca("x", uses=("key_cert_sign",)).pem),
        )
        self.refused("https-ca", mis="https://127.0.0.1:9")
        self.refused("authorized-domain", authz=self.file("foreign.json", b'["spiffe://other.org/margo/wfm/wfm-1"]'))


class Again(World):
    """When the client looks at its files again."""

    def running(self, *switches, **other):
        self.wfm = self.symphony()
        client = self.client(self.wfm, "--stay", *switches, **other)
        self.assertEqual(client.next(connection=1)["result"], "accepted")
        return client

    def connects(self, client):
        """The line of a further connection."""
        client.ask()
        while "connection" not in (line := client.next()):
            pass
        return line

    def test_certificate_key_and_bundle_file_are_read_once(self):
        client = self.running()
        for name in ("client.pem", "client.key", "bundle.json"):
            self.file(name, b"nothing")
        seen = self.connects(client)
        self.assertEqual((seen["result"], seen["serial"]), ("accepted", self.client_svid.serial))
        self.assertEqual(client.end(), 0)

    def test_authorized_renamed_over_in_a_folder_that_stays(self):
        client = self.running()
        self.listed("authorized.json", f"spiffe://{pki.DOMAIN}/margo/wfm/wfm-2")
        client.next(event="authorized", result="replaced")
        self.assertEqual(self.connects(client)["check"], "peer-allow-list")
        self.listed("authorized.json", pki.WFM)
        client.next(event="authorized", result="replaced")
        self.assertEqual(self.connects(client)["result"], "accepted")

    def test_authorized_written_in_place(self):
        client = self.running()
        self.file("authorized.json", b"[]")
        client.next(event="authorized", result="replaced")
        self.assertEqual(self.connects(client)["check"], "peer-allow-list")

    def test_authorized_that_is_invalid_is_ignored(self):
        client = self.running()
        for data in (b"{", json.dumps([pki.CLIENT]).encode(), json.dumps([f" {pki.WFM}"]).encode()):
            self.file(".new", data)
            os.rename(self.path / ".new", self.authorized)
            client.next(event="authorized", result="ignored")
            self.assertEqual(self.connects(client)["result"], "accepted")

    def test_authorized_behind_a_swapped_symlink_is_not_seen(self):
        """Nor is one at the end of a symlink of its own. A change in the old directory shows that the watch goes on."""
        for generation, wfm in (("1", "wfm-1"), ("2", "wfm-2")):
            (self.path / generation).mkdir()
            self.listed(f"{generation}/authorized.json", f"spiffe://{pki.DOMAIN}/margo/wfm/{wfm}")
        os.symlink("1", self.path / "current")
        client = self.running(authorized=self.path / "current" / "authorized.json")
        os.symlink("2", self.path / "next")
        os.rename(self.path / "next", self.path / "current")
        self.unseen(client)
        self.listed("1/authorized.json", pki.WFM)
        client.next(event="authorized", authorized=[f"spiffe://{pki.DOMAIN}/margo/wfm/wfm-2"])
        self.assertEqual(self.connects(client)["check"], "peer-allow-list")
        self.assertEqual(str(client.read).count("event"), 1)

    def test_authorized_target_of_a_symlink_is_not_seen(self):
        (self.path / "stable").mkdir()
        link = self.path / "stable" / "authorized.json"
        os.symlink("../authorized.json", link)
        client = self.running(authorized=link)
        self.listed("authorized.json", f"spiffe://{pki.DOMAIN}/margo/wfm/wfm-2")
        self.unseen(client)

    def unseen(self, client):
        """Nothing is said of a change, for ten times as long as one takes to be seen."""
        time.sleep(10 * (party.WATCH + party.DEBOUNCE))
        self.assertEqual(self.connects(client)["result"], "accepted")
        self.assertNotIn("event", str(client.read))


class FromTheMis(World):
    """The bundle from the MIS, and what the client does without it."""

    @classmethod
    def setUpClass(cls):
        """One MIS directory for all: an RSA-4096 key takes its time."""
        cls.made = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.made.cleanup)
        programs.Program("mis.py", "serve", "--directory", cls.made.name, "--port", 0, server=True).stop()

    def setUp(self):
        super().setUp()
        self.mis_directory = self.path / "mis"
        self.mis_directory.mkdir()
        for name in ("https-ca.crt", "https-ca.key"):
            (self.mis_directory / name).write_bytes(Path(self.made.name, name).read_bytes())
        (self.mis_directory / "ca.crt").write_bytes(ROOT.pem)
        self.https_ca = self.mis_directory / "https-ca.crt"

    def mis(self, *switches):
        return self.start("mis.py", "serve", "--directory", self.mis_directory, "--port", 0, *switches, server=True)

    def switches(self, mis):
        port = mis.address.rpartition(":")[2]
        return (
            "--mis",
            f"https://mis.margo.org:{port}",
            "--https-ca",
            self.https_ca,
            "--resolve",
            "mis.margo.org=127.0.0.1",
        )

    def test_bundle_of_the_mis(self):
        mis = self.mis()
        client = self.client(self.symphony(), *self.switches(mis), bundle=False)
        self.assertEqual(client.next(connection=1)["result"], "accepted")
        self.assertEqual(client.end(), 0)
        self.assertEqual(
            [mis.next(status=200)["request"] for _ in range(2)],
            ["GET /.well-known/margo", "GET /.well-known/spiffe/bundle.json"],
        )

    def test_bundle_file_as_the_fallback(self):
        mis = self.mis("--without-discovery")
        other = self.file("other.json", pki.bundle(pki.ca("other")))
        client = self.client(self.symphony(), *self.switches(mis), bundle=other)
        self.assertEqual(client.next(result="refused")["check"], "chain")
        client = self.client(
            self.symphony(), *self.switches(mis), "--bundle-uri", "/.well-known/spiffe/bundle.json", bundle=other
        )
        self.assertEqual(client.next(connection=1)["result"], "accepted")
        client = self.client(self.symphony(), *self.switches(mis), bundle=False)
        self.assertEqual(client.next(result="refused")["check"], "bundle-fetched")

    def test_bundle_of_a_mis_that_is_not_trusted(self):
        mis = self.mis()
        self.https_ca = self.file("other.crt", ROOT.pem)
        client = self.client(self.symphony(), *self.switches(mis), bundle=False)
        self.assertEqual(client.next(result="refused")["check"], "bundle-fetched")

    def test_bundle_is_fetched_again_by_its_hint(self):
        """With the ETag of its own; another root ends what the old one vouched for; a broken one changes nothing."""
        mis = self.mis()
        client = self.client(self.symphony(), "--stay", *self.switches(mis), bundle=False)
        self.assertEqual(client.next(connection=1)["result"], "accepted")
        mis.next(status=304)
        (self.mis_directory / "ca.crt").write_bytes(b"nothing")
        client.next(event="bundle", result="kept")
        client.ask()
        self.assertEqual(client.next(connection=2)["result"], "accepted")
        (self.mis_directory / "ca.crt").write_bytes(pki.ca("other").pem)
        client.next(event="bundle", result="replaced")
        client.ask()
        self.assertEqual(client.next(connection=3)["check"], "peer-chain")


if __name__ == "__main__":
    unittest.main()
