#!/usr/bin/env python3
"""A WFM Client with the files of its identity: fetches its deployments from its WFM over mTLS.

    wfm_client.py --svid /run/miaf-agent/keys/wfm-client/current \\
        --authorized /var/lib/miaf-agent/svid/wfm-client/authorized.json https://wfm.factory.example:8443

Needs a software key, and Python's standard library alone. Where the key is in the TPM, or is not to be
given to the program, see mtls_client.py and wfm-client.rs: the agent signs for these.

The WFM is identified by its SPIFFE ID, whatever the address: it is the one in authorized.json.
"""

import argparse
import http.client
import json
import os
import socket
import ssl
import sys
from urllib.parse import urlsplit

BASIC_CONSTRAINTS, KEY_USAGE = b"\x55\x1d\x13", b"\x55\x1d\x0f"  # 2.5.29.19, 2.5.29.15
MAY_SIGN_CERTIFICATES = 0x06  # keyCertSign and cRLSign, in the first byte of the key usage
LARGEST = 16 * 1024 * 1024  # bytes of a response


class Refused(Exception):
    """A peer, or a file, that a WFM Client must not use."""


def elements(der):
    """The elements of a DER sequence: tag and content of each."""
    while der:
        tag, length, begin = der[0], der[1], 2
        if length & 0x80:
            begin += length & 0x7F
            length = int.from_bytes(der[2:begin], "big")
        yield tag, der[begin : begin + length]
        der = der[begin + length :]


def may_issue(certificate):
    """Whether a certificate, in DER, is that of an issuer, which is no SVID."""
    ((_, whole),) = elements(certificate)
    (_, to_be_signed), *_ = elements(whole)
    ((_, extensions),) = (list(elements(content))[0] for tag, content in elements(to_be_signed) if tag == 0xA3)
    for _, extension in elements(extensions):
        (_, oid), *_, (_, value) = elements(extension)
        ((_, content),) = elements(value)
        if oid == BASIC_CONSTRAINTS and any(tag == 0x01 and flag != b"\0" for tag, flag in elements(content)):
            return True
        if oid == KEY_USAGE and content[1:] and content[1] & MAY_SIGN_CERTIFICATES:
            return True
    return False


def read_files(directory, authorized):
    """A TLS context with the SVID, and the SPIFFE ID of the WFM."""
    # Once: a rotation replaces "current" by another directory, and all files in one belong together.
    directory = os.path.realpath(directory)
    with open(authorized, encoding="utf-8") as file:
        (wfm,) = json.load(file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the SPIFFE ID counts
    context.load_verify_locations(os.path.join(directory, "bundle.pem"))
    try:
        context.load_cert_chain(os.path.join(directory, "svid.pem"), os.path.join(directory, "key.pem"))
    except ssl.SSLError as error:
        raise Refused(f"the key in {directory} cannot be used; is it in the TPM? {error}") from error
    return context, wfm


def check_peer(connection, wfm):
    """That the server is this WFM. Its chain has been verified with the trust bundle."""
    names = connection.getpeercert().get("subjectAltName", ())
    ids = [value for kind, value in names if kind == "URI"]
    if ids != [wfm]:
        raise Refused(f"the server is {ids}, and the WFM of this client is {wfm}")
    if may_issue(connection.getpeercert(binary_form=True)):
        raise Refused("the certificate of the server is that of an issuer")


def fetch(directory, authorized, url):
    """The WFM's response to GET /api/v1/deployments below this URL: status and body.

    Reads the files for every connection: a rotation needs nothing more.
    """
    context, wfm = read_files(directory, authorized)
    target = urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname, target.port or 443)
    plain = socket.create_connection((target.hostname, target.port or 443), timeout=20)
    with plain, context.wrap_socket(plain) as connection.sock:
        check_peer(connection.sock, wfm)  # before a byte of the request is sent
        path = target.path.rstrip("/") + "/api/v1/deployments"
        connection.request("GET", path, headers={"Accept": "application/json", "Connection": "close"})
        response = connection.getresponse()
        return response.status, response.read(LARGEST).decode()


def main():
    parser = argparse.ArgumentParser(description="A WFM Client with the files of its identity.")
    parser.add_argument("--svid", required=True, metavar="DIR", help="the directory with svid.pem and key.pem")
    parser.add_argument("--authorized", required=True, metavar="FILE", help="authorized.json of the identity")
    parser.add_argument("url", help="https://HOST[:PORT][/PATH] of the WFM")
    options = parser.parse_args()
    try:
        status, body = fetch(options.svid, options.authorized, options.url)
    except (OSError, ValueError, http.client.HTTPException, Refused) as error:
        sys.exit(f"wfm_client.py: {error}")
    if status != 200:
        sys.exit(f"wfm_client.py: the WFM responds with {status}: {body}")
    print(body)


if __name__ == "__main__":
    main()
