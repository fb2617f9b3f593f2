#!/usr/bin/env python3
"""The released WFM client, as far as its files and its connections go.

    client.py --cert svid.pem --key key.pem --mis https://mis.margo.org:18443 --https-ca https-ca.crt
              --authz authorized.json --wfm https://127.0.0.1:8084/v1alpha2/margo

Checks its files like the released client at its start, then fetches GET URL/api/v1/deployments with its
SVID and checks the WFM's. Prints one line of JSON for each check and each connection. With --stay it
makes a further connection for each line on standard input, until that ends.

Exit status: 0, 3 where a check at the start refused, 4 where the WFM was refused, 5 where the connection
or the request failed for another reason.
"""

import argparse
import http.client
import sys
from urllib.parse import urlsplit

from tlslite.errors import BaseTLSException

import mtls
import party
import rules

MANIFEST = "application/vnd.margo.manifest.v1+json"
REFUSED_AT_START, REFUSED_PEER, FAILED = 3, 4, 5


def main():
    parser = argparse.ArgumentParser(description="The released WFM client, replayed.")
    party.arguments(parser)
    parser.add_argument("--wfm", required=True, metavar="URL", help="https://HOST:8084/v1alpha2/margo")
    parser.add_argument("--stay", action="store_true", help="a further connection for each line on standard input")
    options = parser.parse_args()
    client = party.Party(options, rules.WFM_CLIENT, rules.WFM)
    try:
        client.start()
    except rules.Refused as refused:
        party.fail(REFUSED_AT_START, f"refused at the start: {refused}")
    if options.stay:
        client.keep_looking()
    status = connection(client, 1)
    if options.stay:
        for number, _ in enumerate(sys.stdin, 2):
            status = connection(client, number)
    sys.exit(status)


def connection(client, number):
    """One request on a connection of its own. Returns the exit status."""
    target = urlsplit(client.options.wfm)
    shown = []

    def check(chain):
        shown.append(client.check(chain))

    try:
        tls = mtls.connect(client.address(target), target.hostname, client.credential, check)
    except rules.Refused as refused:
        party.tell(connection=number, result="refused", check=refused.check, reason=refused.reason)
        return REFUSED_PEER
    except (BaseTLSException, OSError, ValueError) as error:
        return failed(number, "handshake", error)
    try:
        plain = http.client.HTTPConnection(target.hostname, target.port or 443)
        plain.sock = tls
        plain.request(
            "GET", f"{target.path.rstrip('/')}/api/v1/deployments", headers={"Accept": MANIFEST, "Connection": "close"}
        )
        response = plain.getresponse()
        body = response.read(party.LARGEST).decode(errors="replace")
    except (BaseTLSException, OSError, ValueError, http.client.HTTPException) as error:
        return failed(number, "request", error)
    finally:
        tls.sock.close()
    serial = f"{client.svid.leaf.serial_number:x}"
    party.tell(connection=number, result="accepted", peer=shown[0], serial=serial, status=response.status, body=body)
    return 0 if response.status == 200 else FAILED


def failed(number, during, error):
    party.tell(connection=number, result="failed", during=during, reason=str(error) or type(error).__name__)
    return FAILED


if __name__ == "__main__":
    main()
