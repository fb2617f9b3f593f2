"""Each rule of the released programs, with a neighbour that is accepted."""

import json
import unittest
from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, PrivateFormat

import pki
import rules

ROOT = pki.ca("root")
OTHER_ROOT = pki.ca("other root")
INTERMEDIATE = pki.ca("intermediate", ROOT)
CLIENT = pki.leaf(ROOT)
TEXT = b"subject=O = margo.org\n"


class Case(unittest.TestCase):
    def refused(self, check, words, attempt, *arguments, **named):
        """The attempt is refused by this check, for a reason with these words."""
        with self.assertRaises(rules.Refused) as caught:
            attempt(*arguments, **named)
        self.assertEqual(caught.exception.check, check, caught.exception)
        self.assertIn(words, caught.exception.reason)


class Certificate(Case):
    def read(self, data):
        return rules.svid(data, rules.WFM_CLIENT)

    def test_certificate_with_the_leaf_first(self):
        self.assertEqual(self.read(CLIENT.pem + ROOT.pem).spiffe_id, pki.CLIENT)
        self.assertEqual(len(self.read(CLIENT.pem + ROOT.pem).chain), 2)
        self.refused("certificate", "0 URI SANs", self.read, ROOT.pem + CLIENT.pem)

    def test_certificate_with_something_before_it(self):
        self.read(b"\n  \n" + CLIENT.pem)
        self.read(CLIENT.pem + TEXT)
        self.refused("certificate", "not PEM", self.read, TEXT + CLIENT.pem)

    def test_certificate_file_with_the_key_first(self):
        key = pki.key_pem(CLIENT.key)
        self.read(CLIENT.pem + key)
        self.refused("certificate", "PRIVATE KEY, not CERTIFICATE", self.read, key + CLIENT.pem)

    def test_certificate_with_one_uri(self):
        self.read(pki.leaf(ROOT, dns=["dev-1.example"]).pem)
        self.refused("certificate", "2 URI SANs", self.read, pki.leaf(ROOT, [pki.CLIENT, pki.WFM]).pem)
        self.refused("certificate", "0 URI SANs", self.read, pki.leaf(ROOT, [], dns=["dev-1.example"]).pem)

    def test_certificate_with_the_form_of_a_client(self):
        for uri in (pki.CLIENT, f"{pki.WFM}/client/a.b_c~d%41", "spiffe://plant_1/margo/wfm/a/client/b"):
            self.assertEqual(self.read(pki.leaf(ROOT, uri).pem).spiffe_id, uri)
        for uri in (
            pki.DEVICE,
            pki.WFM,
            f"{pki.CLIENT}/x",
            f"{pki.WFM}/client/",
            "https://margo.org/margo/wfm/a/client/b",
            f"{pki.WFM}/Client/dev-1",
            f"{pki.CLIENT} ",
        ):
            with self.assertRaises(rules.Refused, msg=uri):
                self.read(pki.leaf(ROOT, uri).pem)

    def test_certificate_with_a_lowercase_trust_domain(self):
        self.refused(
            "certificate", "trust domain", self.read, pki.leaf(ROOT, pki.CLIENT.replace("margo.org", "Margo.org")).pem
        )

    def test_certificate_that_is_valid_now(self):
        self.refused("certificate", "expired", self.read, pki.leaf(ROOT, end=-timedelta(seconds=1)).pem)
        self.refused("certificate", "not valid before", self.read, pki.leaf(ROOT, begin=pki.HOUR).pem)


class Key(Case):
    def test_key_of_each_form(self):
        curve, traditional = ec.generate_private_key(ec.SECP256R1()), PrivateFormat.TraditionalOpenSSL
        rsa_key = rsa.generate_private_key(65537, 2048)
        for data in (
            pki.key_pem(curve),
            pki.key_pem(curve, traditional),
            pki.key_pem(rsa_key),
            pki.key_pem(rsa_key, traditional),
            pki.key_pem(curve) + CLIENT.pem,
        ):
            rules.private_key(data)

    def test_key_of_each_algorithm(self):
        for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()):
            rules.private_key(pki.key_pem(ec.generate_private_key(curve)))
        rules.private_key(pki.key_pem(ed25519.Ed25519PrivateKey.generate()))
        self.refused("key", "neither", rules.private_key, pki.key_pem(x25519.X25519PrivateKey.generate()))
        self.refused("key", "secp256k1", rules.private_key, pki.key_pem(ec.generate_private_key(ec.SECP256K1())))

    def test_key_that_is_encrypted(self):
        encrypted = BestAvailableEncryption(b"secret")
        self.refused("key", "ENCRYPTED", rules.private_key, pki.key_pem(CLIENT.key, encryption=encrypted))
        legacy = pki.key_pem(CLIENT.key, PrivateFormat.TraditionalOpenSSL, encrypted)
        self.refused("key", "headers", rules.private_key, legacy)

    def test_key_of_a_tpm(self):
        data = pki.key_pem(CLIENT.key).replace(b"PRIVATE KEY", b"TSS2 PRIVATE KEY")
        self.refused("key", "TSS2 PRIVATE KEY", rules.private_key, data)

    def test_key_after_its_parameters(self):
        parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
        key = pki.key_pem(CLIENT.key, PrivateFormat.TraditionalOpenSSL)
        self.refused("key", "EC PARAMETERS", rules.private_key, parameters + key)

    def test_key_after_its_certificate(self):
        self.refused("key", "CERTIFICATE", rules.private_key, CLIENT.pem + pki.key_pem(CLIENT.key))

    def test_key_belongs_to_the_certificate(self):
        rules.pair(CLIENT.cert, CLIENT.key)
        self.refused("key-pair", "does not belong", rules.pair, CLIENT.cert, ROOT.key)


class Bundle(Case):
    def keys(self, *keys, **other):
        return json.dumps({"keys": list(keys), **other}).encode()

    def test_bundle_of_each_key_type(self):
        for key in (
            ec.generate_private_key(ec.SECP256R1()),
            ec.generate_private_key(ec.SECP384R1()),
            ed25519.Ed25519PrivateKey.generate(),
            rsa.generate_private_key(65537, 2048),
        ):
            anchor = pki.ca("anchor", key=key)
            self.assertEqual(rules.bundle(pki.bundle(anchor)), [anchor.cert])

    def test_bundle_with_several_anchors_and_further_members(self):
        data = self.keys(
            pki.jwk(ROOT.cert, kid="a"), pki.jwk(OTHER_ROOT.cert), spiffe_sequence=1, spiffe_refresh_hint=1, x=2
        )
        self.assertEqual(rules.bundle(data), [ROOT.cert, OTHER_ROOT.cert])

    def test_bundle_pretty_printed_with_sorted_members(self):
        data = json.dumps({"keys": [pki.jwk(ROOT.cert)]}, indent=2, sort_keys=True) + "\n"
        self.assertEqual(rules.bundle(data.encode()), [ROOT.cert])

    def test_bundle_with_one_element_in_each_x5c(self):
        first, second = pki.jwk(INTERMEDIATE.cert), pki.jwk(ROOT.cert)
        rules.bundle(self.keys(first, second))
        self.refused(
            "bundle",
            "2 elements",
            rules.bundle,
            self.keys(pki.jwk(INTERMEDIATE.cert, x5c=first["x5c"] + second["x5c"])),
        )
        self.refused("bundle", "0 elements", rules.bundle, self.keys(second, pki.jwk(INTERMEDIATE.cert, x5c=[])))

    def test_bundle_whose_every_jwk_is_readable(self):
        for member in ("kty", "crv", "x", "y"):
            broken = pki.jwk(OTHER_ROOT.cert)
            del broken[member]
            self.refused("bundle", "not readable", rules.bundle, self.keys(pki.jwk(ROOT.cert), broken))
        self.refused("bundle", "not readable", rules.bundle, self.keys(pki.jwk(ROOT.cert, kty="AKP")))
        self.refused("bundle", "not readable", rules.bundle, self.keys(pki.jwk(ROOT.cert, x="AA")))
        self.refused("bundle", "no readable", rules.bundle, self.keys(pki.jwk(ROOT.cert, x5c=["AAAA"])))
        self.refused("bundle", "not an object", rules.bundle, self.keys(pki.jwk(ROOT.cert), 1))

    def test_bundle_whose_jwk_is_that_of_its_certificate(self):
        self.refused(
            "bundle", "not that of", rules.bundle, self.keys(pki.jwk(ROOT.cert, x5c=pki.jwk(OTHER_ROOT.cert)["x5c"]))
        )

    def test_bundle_with_keys_of_another_use(self):
        others = [{**pki.jwk(OTHER_ROOT.cert, use=use), "x5c": []} for use in ("jwt-svid", "something")]
        self.assertEqual(rules.bundle(self.keys(*others, pki.jwk(ROOT.cert))), [ROOT.cert])
        self.refused("bundle", "no X.509 key", rules.bundle, self.keys(*others))

    def test_bundle_without_keys(self):
        self.refused("bundle", "no keys", rules.bundle, self.keys())
        self.refused("bundle", "no array", rules.bundle, b"{}")

    def test_bundle_map(self):
        data = json.dumps({pki.DOMAIN: json.loads(pki.bundle(ROOT))}).encode()
        self.refused("bundle", "no plain bundle", rules.bundle, data)
        self.refused("bundle-file", "no plain bundle", rules.static_bundle, data)
        rules.static_bundle(pki.bundle(ROOT))

    def test_bundle_with_a_negative_hint(self):
        rules.bundle(pki.bundle(ROOT, spiffe_refresh_hint=0))
        self.refused("bundle", "spiffe_refresh_hint", rules.bundle, pki.bundle(ROOT, spiffe_refresh_hint=-1))
        self.refused("bundle", "spiffe_sequence", rules.bundle, pki.bundle(ROOT, spiffe_sequence="1"))

    def test_bundle_hint(self):
        self.assertEqual(rules.refresh_hint(pki.bundle(ROOT, spiffe_refresh_hint=7)), 7)
        for data in (pki.bundle(ROOT), pki.bundle(ROOT, spiffe_refresh_hint=0), b"[]", b"x"):
            self.assertIsNone(rules.refresh_hint(data))

    def test_trust_domain_is_a_dns_name(self):
        for name in ("margo.org", "a.b-c.example"):
            rules.trust_domain(name)
        for name in (
            "factory",
            "plant_1",
            "plant_1.org",
            "margo.o",
            "margo.1",
            "",
            "https://margo.org",
            "margo.org:1",
            "margo.org\n",
        ):
            self.refused("trust-domain", "not a DNS name", rules.trust_domain, name)


class HttpsCa(Case):
    def test_https_ca_that_signs_certificates_and_crls(self):
        rules.https_ca(ROOT.pem)
        self.refused("https-ca", "cRLSign", rules.https_ca, pki.ca("ca", uses=("key_cert_sign",)).pem)
        self.refused("https-ca", "keyCertSign", rules.https_ca, pki.ca("ca", uses=("crl_sign",)).pem)

    def test_https_ca_first_in_the_file(self):
        rules.https_ca(ROOT.pem + CLIENT.pem)
        self.refused("https-ca", "not a CA", rules.https_ca, CLIENT.pem + ROOT.pem)
        self.refused("https-ca", "not PEM", rules.https_ca, ROOT.der)

    def test_https_ca_that_is_valid_now(self):
        self.refused("https-ca", "expired", rules.https_ca, pki.ca("ca", end=-pki.HOUR).pem)
        self.refused("https-ca", "not valid before", rules.https_ca, pki.ca("ca", begin=pki.HOUR).pem)

    def test_https_ca_that_is_not_self_signed(self):
        rules.https_ca(INTERMEDIATE.pem)


class Authorized(Case):
    def start(self, data):
        return rules.authorized(data, rules.WFM)

    def test_authorized_is_an_array_of_ids(self):
        self.assertEqual(self.start(json.dumps([pki.WFM]).encode()), [pki.WFM])
        for data in (b'{"ids": []}', b'"x"', b"[1]", b"null", json.dumps([[pki.WFM]]).encode()):
            self.refused("authorized", "not a JSON array of strings", self.start, data)
        self.refused("authorized", "not JSON", self.start, pki.WFM.encode())

    def test_authorized_has_one_id_at_least(self):
        for data in (b"[]", b'[""]', b'["  "]'):
            self.refused("authorized", "no SPIFFE ID", self.start, data)

    def test_authorized_has_the_form_of_a_wfm(self):
        for spiffe_id in (pki.CLIENT, pki.DEVICE, f"{pki.WFM}/", "wfm-1"):
            with self.assertRaises(rules.Refused, msg=spiffe_id):
                self.start(json.dumps([pki.WFM, spiffe_id]).encode())

    def test_authorized_with_blanks_at_the_start_only(self):
        data = json.dumps([f" {pki.WFM}\n", ""]).encode()
        self.assertEqual(self.start(data), [pki.WFM])
        self.refused("authorized", "SPIFFE ID", rules.new_authorized, data, rules.WFM)

    def test_authorized_new_list_may_be_empty(self):
        self.assertEqual(rules.new_authorized(b"[]", rules.WFM), [])

    def test_authorized_is_of_the_same_trust_domain(self):
        rules.authorized_domain([pki.WFM], pki.DOMAIN)
        self.refused(
            "authorized-domain", "other.org", rules.authorized_domain, ["spiffe://other.org/margo/wfm/a"], pki.DOMAIN
        )

    def test_own_id_is_of_the_same_trust_domain(self):
        rules.own_domain(pki.CLIENT, pki.DOMAIN)
        self.refused("own-domain", "margo.org", rules.own_domain, pki.CLIENT, "other.org")


class Chain(Case):
    def test_chain_of_a_leaf_that_an_anchor_signed(self):
        rules.own_chain(CLIENT.cert, [OTHER_ROOT.cert, ROOT.cert])
        self.refused("chain", "signed by no anchor", rules.own_chain, CLIENT.cert, [OTHER_ROOT.cert])

    def test_chain_by_an_intermediate(self):
        """Its own file's intermediates are not looked at, but one as a further key of the bundle will do."""
        below = pki.leaf(INTERMEDIATE)
        self.refused("chain", "signed by no anchor", rules.own_chain, below.cert, [ROOT.cert])
        rules.own_chain(below.cert, [ROOT.cert, INTERMEDIATE.cert])

    def test_chain_is_verified_at_the_beginning_of_the_leaf(self):
        expired = pki.ca("expired", begin=-2 * pki.DAY, end=-timedelta(minutes=1))
        rules.own_chain(pki.leaf(expired).cert, [expired.cert])
        young = pki.ca("young", begin=-timedelta(minutes=30))
        self.refused("chain", "not valid at", rules.own_chain, pki.leaf(young).cert, [young.cert])

    def test_chain_to_a_certificate_that_is_no_ca(self):
        imposter = pki.ca("imposter", is_ca=False)
        self.refused("chain", "not a CA", rules.own_chain, pki.leaf(imposter).cert, [imposter.cert])
        unable = pki.ca("unable", uses=("crl_sign",))
        self.refused("chain", "may not sign", rules.own_chain, pki.leaf(unable).cert, [unable.cert])


class Peer(Case):
    """What a client makes of a WFM. Each refusal but the first comes before those below it."""

    def check(self, *chain, allowed=(pki.WFM,), own_id=pki.CLIENT, principal=rules.WFM, anchors=(ROOT.cert,)):
        return rules.peer(
            [holder.der for holder in chain],
            principal=principal,
            own_id=own_id,
            domain=pki.DOMAIN,
            anchors=anchors,
            allowed=allowed,
        )

    def wfm(self, uris=pki.WFM, issuer=ROOT, **other):
        return pki.leaf(issuer, uris, **other)

    def test_peer_that_is_accepted(self):
        self.assertEqual(self.check(self.wfm()), pki.WFM)

    def test_peer_client_that_is_accepted(self):
        client = pki.leaf(ROOT)
        self.assertEqual(
            self.check(client, allowed=[pki.CLIENT], own_id=pki.WFM, principal=rules.WFM_CLIENT), pki.CLIENT
        )

    def test_peer_without_a_certificate(self):
        self.refused("peer-certificate", "no certificate", self.check)

    def test_peer_of_another_trust_domain(self):
        """Before the chain is looked at."""
        foreign = pki.leaf(OTHER_ROOT, "spiffe://other.org/margo/wfm/wfm-1")
        self.refused(
            "peer-trust-domain", "other.org", self.check, foreign, allowed=["spiffe://other.org/margo/wfm/wfm-1"]
        )
        self.refused(
            "peer-trust-domain", "not of margo.org", self.check, pki.leaf(ROOT, "spiffe://other.org/margo/wfm/wfm-1")
        )

    def test_peer_with_one_uri(self):
        self.refused("peer-trust-domain", "2 URI SANs", self.check, self.wfm([pki.WFM, pki.CLIENT]))
        self.refused("peer-trust-domain", "0 URI SANs", self.check, self.wfm([], dns=["wfm.example"]))

    def test_peer_of_another_root(self):
        """Before the form is looked at."""
        self.refused("peer-chain", "signed by no anchor", self.check, self.wfm(pki.DEVICE, OTHER_ROOT))

    def test_peer_by_an_intermediate(self):
        below = self.wfm(issuer=INTERMEDIATE)
        self.check(below, INTERMEDIATE)
        self.check(below, OTHER_ROOT, INTERMEDIATE, ROOT)
        self.refused("peer-chain", "signed by no anchor", self.check, below)
        self.check(self.wfm(), OTHER_ROOT)

    def test_peer_whose_ca_is_expired(self):
        """Not noticed: issuers are judged at the leaf's notBefore."""
        expired = pki.ca("expired", begin=-2 * pki.DAY, end=-timedelta(minutes=1))
        self.check(self.wfm(issuer=expired), anchors=[expired.cert])
        between = pki.ca("between", ROOT, begin=-2 * pki.DAY, end=-timedelta(minutes=1))
        self.check(self.wfm(issuer=between), between)

    def test_peer_older_than_its_ca(self):
        young = pki.ca("young", begin=-timedelta(minutes=30))
        self.refused("peer-chain", "not valid at", self.check, self.wfm(issuer=young), anchors=[young.cert])
        self.check(self.wfm(issuer=young, begin=-timedelta(minutes=10)), anchors=[young.cert])

    def test_peer_of_another_kind(self):
        """Before its validity is looked at."""
        self.refused("peer-form", "form of a WFM", self.check, self.wfm(pki.DEVICE, end=-timedelta(minutes=1)))
        self.refused("peer-form", "form of a WFM", self.check, self.wfm(pki.CLIENT), allowed=[pki.CLIENT])
        self.refused("peer-form", "form of a WFM client", self.check, self.wfm(), principal=rules.WFM_CLIENT)

    def test_peer_that_is_not_valid_now(self):
        """Before its constraints are looked at."""
        self.refused("peer-validity", "expired", self.check, self.wfm(end=-timedelta(minutes=1), uses=("crl_sign",)))
        self.refused("peer-validity", "not valid before", self.check, self.wfm(begin=pki.HOUR))

    def test_peer_that_is_a_ca(self):
        """Before the allow list is looked at."""
        self.refused("peer-leaf", "CA", self.check, self.wfm(is_ca=True), allowed=[])
        for use in ("key_cert_sign", "crl_sign"):
            self.refused("peer-leaf", "keyCertSign or cRLSign", self.check, self.wfm(uses=("digital_signature", use)))

    def test_peer_outside_the_allow_list(self):
        """Before the wfm-id is looked at. The comparison is exact."""
        other = f"spiffe://{pki.DOMAIN}/margo/wfm/wfm-2"
        self.refused("peer-allow-list", "allow list", self.check, self.wfm(other))
        self.refused("peer-allow-list", "allow list", self.check, self.wfm(), allowed=[])
        self.refused(
            "peer-allow-list",
            "allow list",
            self.check,
            self.wfm(pki.WFM.upper().replace("SPIFFE://MARGO.ORG/MARGO/WFM/", f"spiffe://{pki.DOMAIN}/margo/wfm/")),
        )

    def test_peer_of_another_wfm(self):
        """Although the list names it."""
        other = f"spiffe://{pki.DOMAIN}/margo/wfm/wfm-2"
        self.refused("peer-same-wfm", "another wfm-id", self.check, self.wfm(other), allowed=[pki.WFM, other])
        client = f"{other}/client/dev-1"
        self.refused(
            "peer-same-wfm",
            "another wfm-id",
            self.check,
            self.wfm(client),
            allowed=[client],
            own_id=pki.WFM,
            principal=rules.WFM_CLIENT,
        )

    def test_peer_names_and_usages_play_no_part(self):
        self.check(self.wfm(dns=["elsewhere.example"], eku=(pki.CLIENT_AUTH,)))
        self.check(self.wfm(eku=None))
        self.check(self.wfm(name="", critical=True))


class ToolkitPeer(Case):
    def check(self, *chain, anchors=(ROOT.cert,)):
        return rules.toolkit_peer([holder.der for holder in chain], own_id=pki.WFM, anchors=anchors)

    def test_toolkit_client_of_its_wfm(self):
        self.assertEqual(self.check(CLIENT), pki.CLIENT)
        self.check(pki.leaf(ROOT, f"{pki.WFM}/client/anybody"))
        for uri in (
            pki.WFM,
            pki.DEVICE,
            f"{pki.CLIENT}/x",
            f"{pki.WFM}/client/",
            f"{pki.WFM}2/client/dev-1",
            "spiffe://other.org/margo/wfm/wfm-1/client/dev-1",
        ):
            self.refused("peer-form", "is not", self.check, pki.leaf(ROOT, uri))
        self.refused("peer-form", "2 URI SANs", self.check, pki.leaf(ROOT, [pki.CLIENT, pki.WFM]))

    def test_toolkit_client_without_a_certificate(self):
        self.refused("peer-certificate", "no certificate", self.check)

    def test_toolkit_counts_the_extended_key_usage(self):
        self.check(pki.leaf(ROOT, eku=None))
        self.check(pki.leaf(ROOT, eku=(pki.CLIENT_AUTH,)))
        self.refused("peer-chain", "not for clients", self.check, pki.leaf(ROOT, eku=(pki.SERVER_AUTH,)))

    def test_toolkit_wants_issuers_that_are_valid_now(self):
        expired = pki.ca("expired", begin=-2 * pki.DAY, end=-timedelta(minutes=1))
        self.refused("peer-chain", "not valid at", self.check, pki.leaf(expired), anchors=[expired.cert])
        young = pki.ca("young", begin=-timedelta(minutes=30))
        self.check(pki.leaf(young), anchors=[young.cert])
        self.refused("peer-chain", "not valid at", self.check, pki.leaf(ROOT, end=-timedelta(minutes=1)))

    def test_toolkit_uses_intermediates_of_the_client(self):
        self.check(pki.leaf(INTERMEDIATE), INTERMEDIATE)
        self.refused("peer-chain", "signed by no anchor", self.check, pki.leaf(INTERMEDIATE))
        self.refused("peer-chain", "signed by no anchor", self.check, pki.leaf(OTHER_ROOT))

    def test_toolkit_reads_a_ca_file_with_text_before_it(self):
        self.assertEqual(rules.anchor_file(TEXT + ROOT.pem + OTHER_ROOT.pem), [ROOT.cert, OTHER_ROOT.cert])
        self.refused("ca", "no certificate", rules.anchor_file, pki.key_pem(ROOT.key))


if __name__ == "__main__":
    unittest.main()
