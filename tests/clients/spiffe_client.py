"""What PyPI's spiffe makes of the agent's Workload API: one line of JSON for each thing that it learns.

    spiffe_client.py svid unix:///PATH       the SVID, and each that takes its place
    spiffe_client.py bundles unix:///PATH    the bundles, and again at each update of the JWT bundles (which comes with
                                             every new connection) and for each line on standard input

Both go on until standard input ends.
"""

import hashlib
import json
import sys

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spiffe import JwtSource, WorkloadApiClient, X509Source

PATIENCE = 120.0


def main():
    what, socket = sys.argv[1:]
    {"svid": svid, "bundles": bundles}[what](socket)


def svid(socket):
    with X509Source(socket_path=socket, timeout_in_seconds=PATIENCE) as source:
        source.subscribe_for_updates(lambda: tell_svid(source))
        tell_svid(source)
        sys.stdin.read()


def tell_svid(source):
    context = source.get_x509_context()
    held = context.default_svid
    tell(
        spiffeId=str(held.spiffe_id),
        serial=held.leaf.serial_number,
        keyFits=public(held.private_key.public_key()) == public(held.leaf.public_key()),
        anchors=anchors(context.x509_bundle_set),
    )


def bundles(socket):
    with WorkloadApiClient(socket) as client, JwtSource(
        socket_path=socket, timeout_in_seconds=PATIENCE
    ) as jwt_source:
        jwt_source.subscribe_for_updates(lambda: tell_bundles(client, jwt_source))
        tell_bundles(client, jwt_source)
        for _ in sys.stdin:
            tell_bundles(client, jwt_source)


def tell_bundles(client, jwt_source):
    tell(
        anchors=anchors(client.fetch_x509_bundles(timeout=PATIENCE)),
        jwtBundles={bundle.trust_domain.name: len(bundle.jwt_authorities) for bundle in jwt_source.bundles},
        svid=refusal(lambda: client.fetch_x509_svid(timeout=PATIENCE)),
        jwtSvid=refusal(lambda: client.fetch_jwt_svid({"audience"})),
    )


def refusal(attempt):
    try:
        attempt()
    except Exception as e:
        return str(e)
    return None


def anchors(bundle_set):
    return {
        bundle.trust_domain.name: sorted(
            hashlib.sha256(anchor.public_bytes(Encoding.DER)).hexdigest() for anchor in bundle.x509_authorities
        )
        for bundle in bundle_set.bundles
    }


def public(key):
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def tell(**what):
    print(json.dumps(what), flush=True)


main()
