"""Odd responses of EST servers, each by its name. What they stand for: README.md."""

import base64
import json
import random
from datetime import timedelta

import pkcs7
from ca import DAY, der, new_key, uri_san

CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"

# --- Contents: what is in place of the PKCS#7 of these certificates -------------------------------

CONTENTS = {
    "ber": lambda ca, certs: pkcs7.certs_only(certs, "indefinite"),
    "long-lengths": lambda ca, certs: pkcs7.certs_only(certs, "long"),
    "unsorted": lambda ca, certs: pkcs7.certs_only(certs, in_order=True),
    "empty-crls": lambda ca, certs: pkcs7.certs_only(certs, crls=[], in_order=True),
    "crl": lambda ca, certs: pkcs7.certs_only(certs, crls=[ca.crl()]),
    "attribute-certificate": lambda ca, certs: pkcs7.certs_only(
        certs, "indefinite", version=4, others=[ca.attribute_certificate()], in_order=True
    ),
    "unreadable-element": lambda ca, certs: pkcs7.certs_only(certs, others=[b"\x30\x03\x02\x01\x2a"]),
    "leaf-twice": lambda ca, certs: pkcs7.certs_only([*certs, certs[0]]),
    "with-chain": lambda ca, certs: pkcs7.certs_only([*certs, *map(der, ca.chain())]),
    "with-strangers": lambda ca, certs: pkcs7.certs_only([*certs, *map(der, ca.bag("strange-roots"))]),
    "content": lambda ca, certs: pkcs7.certs_only(certs, content=b""),
    # Refused, each with a reason of its own.
    "no-certificates": lambda ca, certs: pkcs7.certs_only([]),
    "only-chain": lambda ca, certs: pkcs7.certs_only(map(der, ca.chain())),
    "enveloped": lambda ca, certs: pkcs7.enveloped(),
    "bare-certificate": lambda ca, certs: certs[0],
    "trailing-nul": lambda ca, certs: pkcs7.certs_only(certs) + b"\x00",
    "cut-short": lambda ca, certs: pkcs7.certs_only(certs)[:-20],
}

# --- Bodies: what is in place of the base64 of a content ------------------------------------------


def lines(data, width, end, last=True):
    text = base64.b64encode(data).decode()
    cut = [text[at : at + width] for at in range(0, len(text), width)]
    return (end.join(cut) + (end if last else "")).encode()


def armour(label, data):
    return f"-----BEGIN {label}-----\n".encode() + lines(data, 64, "\n") + f"-----END {label}-----\n".encode()


def blanks(data):
    """White space everywhere, which receivers have to pass over (RFC 8951, 3.1)."""
    return lines(data, 7, " \t\r\n")


HTML = b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body><h1>It works!</h1></body></html>\n"

BODIES = {
    "one-line": lambda data: base64.b64encode(data),
    "lines-64-lf": lambda data: lines(data, 64, "\n"),
    "lines-76-crlf": lambda data: lines(data, 76, "\r\n"),
    "no-last-line-break": lambda data: lines(data, 76, "\r\n", last=False),
    "blanks": blanks,
    # Refused.
    "pem": lambda data: armour("PKCS7", data),
    "raw-der": lambda data: data,
    "html": lambda data: HTML,
    "no-padding": lambda data: base64.b64encode(data).rstrip(b"=") if len(data) % 3 else base64.b64encode(data)[:-1],
    "url-alphabet": lambda data: base64.urlsafe_b64encode(data),
    "nul-after-base64": lambda data: base64.b64encode(data) + b"\x00",
    "text-after-base64": lambda data: base64.b64encode(data) + b"\nThank you.\n",
    "empty": lambda data: b"",
}

# --- Headers --------------------------------------------------------------------------------------

TYPES = {
    "type-plain": "application/pkcs7-mime",
    "type-certs-only": CERTS_ONLY,
    "type-in-capitals": "Application/PKCS7-MIME ; SMIME-Type=certs-only ;name=smime.p7c",
    # Refused.
    "type-pem": "application/x-pem-file",
    "type-text": "text/plain",
    "type-none": None,
}
ENCODINGS = {"encoding-base64": "base64", "encoding-binary": "binary"}

# --- Leaves: which certificate is issued ----------------------------------------------------------


def leaf_of_another_key(ca, key, subject, san, lifetime):
    return ca.issue(new_key().public_key(), subject, san, lifetime)


def leaf_with(change):
    return lambda ca, key, subject, san, lifetime: ca.issue(key, subject, change(san), lifetime)


LEAVES = {
    "leaf-for-another-key": leaf_of_another_key,
    "leaf-of-another-id": leaf_with(lambda san: (True, uri_san("spiffe://factory.example/margo/wfm/other/client/x"))),
    "leaf-of-another-domain": leaf_with(lambda san: (True, uri_san("spiffe://other.example/margo/wfm/wfm-1/client/x"))),
    "leaf-of-two-ids": leaf_with(
        lambda san: (True, uri_san(*(f"spiffe://factory.example/margo/wfm/wfm-1/client/{one}" for one in "ab")))
    ),
    "leaf-without-san": leaf_with(lambda san: None),
    "leaf-with-san-not-critical": leaf_with(lambda san: (False, san[1]) if san else None),
    "leaf-expired": lambda ca, key, subject, san, lifetime: ca.issue(
        key, subject, san, timedelta(hours=1), begin=-2 * DAY
    ),
}

# --- Bags: what is in /cacerts --------------------------------------------------------------------

BAGS = (
    "without-root",
    "without-intermediate",
    "strange-roots",
    "shuffled",
    "expired-twins",
    "rollover",
    "crowd",
    "twice",
)

# --- Answers in place of all that -----------------------------------------------------------------

NGINX = b"""<html>\r
<head><title>400 %s</title></head>\r
<body>\r
<center><h1>400 Bad Request</h1></center>\r
<center>%s</center>\r
<hr><center>nginx/1.22.1</center>\r
</body>\r
</html>\r
"""
APACHE = b"""<!DOCTYPE HTML PUBLIC "-//IETF//DTD HTML 2.0//EN">
<html><head>
<title>403 Forbidden</title>
</head><body>
<h1>Forbidden</h1>
<p>You don't have permission to access this resource.Reason: Cannot perform Post-Handshake Authentication.<br />
</p>
</body></html>
"""
BASIC = {"WWW-Authenticate": 'Basic realm="est-peer", charset="UTF-8"'}
DIGEST = {"WWW-Authenticate": 'Digest realm="est-peer", qop="auth", algorithm=SHA-256, nonce="7030"'}
HTML_TYPE = {"Content-Type": "text/html"}
LATIN_HTML = {"Content-Type": "text/html; charset=iso-8859-1"}
TEXT = {"Content-Type": "text/plain; charset=utf-8"}


def echo(headers):
    """An error of a gateway that shows the request it was given, credentials and all."""
    document = {"error": "upstream failed", "request": {"headers": {name: value for name, value in headers.items()}}}
    return json.dumps(document).encode()


def after(value):
    return {"Retry-After": value} if value else {}


# Name -> function of the request's headers and of what follows "=" in the name, to status, headers and body.
# A body of `None`: no Content-Length and no body, and the connection stays open.
ANSWERS = {
    "202": lambda _, value: (202, {**TEXT, **after(value)}, b"The request is held for review.\n"),
    "202-bare": lambda _, value: (202, after(value), None),
    "204": lambda _, value: (204, {}, b""),
    "302": lambda _, value: (302, {"Location": value or "/"}, b""),
    "400-text": lambda _, value: (400, TEXT, b"malformed certification request\n"),
    "400-without-type": lambda _, value: (400, {}, b"Bad request"),
    "400-nginx-none": lambda _, value: (
        400,
        HTML_TYPE,
        NGINX % (b"No required SSL certificate was sent", b"No required SSL certificate was sent"),
    ),
    "400-nginx-bad": lambda _, value: (
        400,
        HTML_TYPE,
        NGINX % (b"The SSL certificate error", b"The SSL certificate error"),
    ),
    "401": lambda _, value: (401, {**TEXT, **BASIC}, b"Unauthorized\n"),
    "401-empty": lambda _, value: (401, BASIC, b""),
    "401-digest": lambda _, value: (401, {**TEXT, **DIGEST}, b"Unauthorized\n"),
    "401-without-challenge": lambda _, value: (401, {**TEXT, "Connection": "close"}, b"Unauthorized"),
    "403": lambda _, value: (403, TEXT, b"forbidden\n"),
    "403-apache": lambda _, value: (403, LATIN_HTML, APACHE),
    "404": lambda _, value: (404, TEXT, b"404 page not found\n"),
    "405-empty": lambda _, value: (405, {}, b""),
    "409": lambda _, value: (409, {}, b""),
    "413": lambda _, value: (413, TEXT, b"404 Not Found\n"),
    "415": lambda _, value: (415, TEXT, b"unsupported media type\n"),
    "429": lambda _, value: (429, {**TEXT, **after(value)}, b"too many requests\n"),
    "500": lambda _, value: (500, TEXT, b"internal server error\n"),
    "500-json-echo": lambda headers, value: (500, {"Content-Type": "application/json"}, echo(headers)),
    "503": lambda _, value: (503, after(value), b""),
}

# Nothing is answered: `cut` before a certificate is issued, `cut-issued` after it, `cut-body` half way through
# the body; `without-length`: the end of the connection ends the body, without close_notify.
CUTS = ("cut", "cut-issued", "cut-body", "without-length")

NAMES = {*CONTENTS, *BODIES, *TYPES, *ENCODINGS, *LEAVES, *BAGS, *ANSWERS, *CUTS}


def check(name):
    plain = name.partition("=")[0]
    if plain not in NAMES:
        raise ValueError(f"no such oddity: {name}")
    return name
