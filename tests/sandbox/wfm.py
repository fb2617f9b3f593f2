#!/usr/bin/env python3
"""The WFMs that a released WFM client meets, as far as their checks go.

    wfm.py --mode symphony --cert … --key … --bundle bundle.json --authz clients.json [--port 0]
    wfm.py --mode toolkit --cert … --key … --ca ca.crt [--port 0] [--health-port 0]

symphony is margo/symphony's: the checks of a WFM client, from the other side, with an allow list that
is looked at again for each request. toolkit is the conformance toolkit's for device suppliers: ordinary
validation against a CA file, any client of its own wfm-id, no allow list.

Prints the address, then one line of JSON for each check at the start, each connection and each request.
Serves GET BASE/api/v1/deployments.
"""

import argparse
import itertools
import threading
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

import mis
import mtls
import party
import rules

MANIFEST = "application/vnd.margo.manifest.v1+json"
DEPLOYMENTS = b'{"bundle":null,"deployments":[],"manifestVersion":1}'
REFUSED_AT_START = 3


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = urlsplit(self.path).path
        if not self.server.permitted(self.connection.peer):
            detail = "the SPIFFE ID of the client is not in the list of authorized clients"
            self._respond(401, mis.problem("about:blank", "Unauthorized", 401, detail, path))
        elif path != f"{self.server.base}/api/v1/deployments":
            self._respond(404, mis.problem("about:blank", "Resource Not Found", 404, f"path {path} not found", path))
        else:
            self._respond(200, DEPLOYMENTS, MANIFEST)

    def _respond(self, status, body, media="application/problem+json"):
        party.tell(request=f"{self.command} {self.path}", status=status, peer=self.connection.peer)
        self.send_response_only(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class HealthHandler(Handler):
    """The toolkit's port without client certificates: its API is refused there."""

    def do_GET(self):
        path = urlsplit(self.path).path
        if path.startswith(f"{self.server.base}/"):
            kind, detail = mis.TYPES + "not-authorized", "the API is served with client certificates, on another port"
            self._respond(403, mis.problem(kind, "Not Authorized", 403, detail, path))
        elif path == "/health":
            self._respond(200, b'{"status":"ok"}', "application/json")
        else:
            self._respond(404, mis.problem("about:blank", "Resource Not Found", 404, f"path {path} not found", path))

    do_POST = do_PUT = do_DELETE = do_GET


def symphony(options):
    """Own credential, the check of a connection and that of a request."""
    wfm = party.Party(options, rules.WFM, rules.WFM_CLIENT)
    wfm.start()
    wfm.keep_looking()
    return wfm.credential, wfm.check, lambda peer: peer in wfm.allowed


def toolkit(options):
    own = party.said("certificate", lambda: rules.svid(party.read(options.cert, "certificate"), rules.WFM))
    key = party.said("key", lambda: rules.private_key(party.read(options.key, "key")))
    party.said("key-pair", lambda: rules.pair(own.leaf, key))
    anchors = party.said("ca", lambda: rules.anchor_file(party.read(options.ca, "ca")))

    def check(chain):
        return rules.toolkit_peer(chain, own_id=own.spiffe_id, anchors=anchors)

    return mtls.Credential(own.chain, key), check, lambda peer: True


def main():
    parser = argparse.ArgumentParser(description="The WFMs that a released WFM client meets, replayed.")
    parser.add_argument("--mode", required=True, choices=["symphony", "toolkit"])
    party.arguments(parser)
    parser.add_argument("--ca", metavar="FILE", help="toolkit: the CA certificates, PEM")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, help="0: a free one (default: 8084, or 3003 of the toolkit)")
    parser.add_argument("--health-port", type=int, help="toolkit: a port without client certificates (there: 3001)")
    parser.add_argument("--base", default="/v1alpha2/margo", help="path before /api/v1")
    options = parser.parse_args()
    if options.mode == "toolkit" and not options.ca:
        parser.error("--mode toolkit needs --ca")
    # Bound first, for the address is the first line, and served last.
    start, minimum, port = (
        (symphony, mtls.TLS_1_3, 8084) if options.mode == "symphony" else (toolkit, mtls.TLS_1_2, 3003)
    )
    server = bind(options, Handler, port if options.port is None else options.port, minimum, "listening on")
    others = []
    if options.health_port is not None:
        others = [bind(options, HealthHandler, options.health_port, minimum, "health on")]
    try:
        server.credential, server.check, server.permitted = start(options)
    except rules.Refused as refused:
        party.fail(REFUSED_AT_START, f"refused at the start: {refused}")
    for other in others:
        other.credential = server.credential
        threading.Thread(target=other.serve_forever, daemon=True).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


def bind(options, handler, port, minimum, words):
    server = mtls.Server((options.host, port), handler, None, minimum, None, reporter())
    server.base = options.base.rstrip("/")
    host, port = server.server_address
    print(f"{words} https://{host}:{port}", flush=True)
    return server


def reporter():
    numbers = itertools.count(1)

    def report(chain, outcome):
        what = {"connection": next(numbers)}
        if chain:
            what["serial"] = serial(chain[0])
        if isinstance(outcome, rules.Refused):
            party.tell(**what, result="refused", check=outcome.check, reason=outcome.reason)
        elif isinstance(outcome, Exception):
            party.tell(**what, result="failed", reason=str(outcome) or type(outcome).__name__)
        else:
            party.tell(**what, result="accepted", peer=outcome)

    return report


def serial(der):
    try:
        return f"{rules.certificate(der, 'peer-certificate').serial_number:x}"
    except rules.Refused:
        return None


if __name__ == "__main__":
    main()
