"""One party of a connection, WFM client or WFM: its checks at the start, and what it looks at again.

Certificate, key, https-ca.crt and a bundle file are read once. The bundle of an MIS is fetched at the
pace of its hint, and the allow list is read when a name in the directory that held it at the start changes.
"""

import http.client
import json
import os
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import mtls
import rules

WATCH = 0.05  # seconds between two looks at the directory of the allow list
DEBOUNCE = 0.1  # seconds between a change and the reading
CACHE_INTERVAL = 60  # seconds between two fetches of a bundle without a hint
LARGEST = 1 << 20  # bytes of a document

_printing = threading.Lock()


def tell(**what):
    """Prints one line of JSON."""
    with _printing:
        print(json.dumps(what), flush=True)


def arguments(parser):
    """The options that a WFM client and a WFM share."""
    parser.add_argument("--cert", required=True, help="the SVID: PEM, leaf first")
    parser.add_argument("--key", required=True, help="its private key, PEM")
    parser.add_argument("--mis", metavar="URL", help="https://HOST:PORT of the MIS; needs --https-ca")
    parser.add_argument("--https-ca", metavar="FILE", help="https-ca.crt of the MIS")
    parser.add_argument("--bundle", metavar="FILE", help="a bundle file, used where the MIS has none to give")
    parser.add_argument(
        "--bundle-uri", metavar="PATH", help="path of the bundle, where the MIS has no discovery document"
    )
    parser.add_argument("--trust-domain", help="for --bundle and --bundle-uri; default: that of the SVID")
    parser.add_argument("--authz", metavar="FILE", help="authorized.json")
    parser.add_argument("--cache-interval", type=int, default=CACHE_INTERVAL, metavar="SECONDS")
    parser.add_argument(
        "--resolve", action="append", default=[], metavar="NAME=ADDRESS", help="an entry of the hosts file"
    )


class Party:
    """What a party knows after its start."""

    def __init__(self, options, principal, peers):
        self.options, self.principal, self.peers = options, principal, peers
        self.hosts = dict(entry.split("=", 1) for entry in options.resolve)
        self.etag = None
        self.interval = options.cache_interval
        self.last_told = None

    def start(self):
        """All checks at the start, each with a line. Raises the first refusal."""
        options = self.options
        self.svid = said("certificate", lambda: rules.svid(read(options.cert, "certificate"), self.principal))
        self.key = said("key", lambda: rules.private_key(read(options.key, "key")))
        if options.mis or options.https_ca:
            self.ca = said("https-ca", self._https_ca)
        self.file = options.bundle and said(
            "bundle-file", lambda: rules.static_bundle(read(options.bundle, "bundle-file"))
        )
        self.allowed = said("authorized", self._authorized)
        said("key-pair", lambda: rules.pair(self.svid.leaf, self.key))
        self.credential = mtls.Credential(self.svid.chain, self.key)
        domain, document, etag = said("bundle-fetched", self._fetch)
        self.domain = said("trust-domain", lambda: rules.trust_domain(domain))
        self.anchors = said("bundle", lambda: rules.bundle(document))
        self.etag = etag
        self._pace(document)
        said("own-domain", lambda: rules.own_domain(self.svid.spiffe_id, self.domain))
        said("chain", lambda: rules.own_chain(self.svid.leaf, self.anchors))
        said("authorized-domain", lambda: rules.authorized_domain(self.allowed, self.domain))

    def check(self, chain):
        """The SPIFFE ID of a peer that passes the checks of each connection."""
        return rules.peer(
            chain,
            principal=self.peers,
            own_id=self.svid.spiffe_id,
            domain=self.domain,
            anchors=self.anchors,
            allowed=self.allowed,
        )

    def keep_looking(self):
        """Starts the threads that follow the allow list and the bundle."""
        threading.Thread(target=self._follow_list, daemon=True).start()
        threading.Thread(target=self._follow_bundle, daemon=True).start()

    def _https_ca(self):
        if not (self.options.mis and self.options.https_ca):
            raise rules.Refused("https-ca", "--mis and --https-ca are needed both or not at all")
        data = read(self.options.https_ca, "https-ca")
        rules.https_ca(data)
        return data

    def _authorized(self):
        if not self.options.authz:
            raise rules.Refused("authorized", "--authz is missing")
        self.watch = Folder(self.options.authz)
        return rules.authorized(read(self.options.authz, "authorized"), self.peers)

    def _follow_list(self):
        while True:
            self.watch.wait()
            time.sleep(DEBOUNCE)
            try:
                self.allowed = rules.new_authorized(read(self.options.authz, "authorized"), self.peers)
                tell(event="authorized", result="replaced", authorized=self.allowed)
            except rules.Refused as refused:
                tell(event="authorized", result="ignored", reason=refused.reason)

    def _follow_bundle(self):
        while True:
            time.sleep(self.interval)
            try:
                domain, document, etag = self._fetch()
                if document is None:
                    continue
                rules.trust_domain(domain)
                anchors = rules.bundle(document)
            except rules.Refused as refused:
                self._tell_bundle(result="kept", check=refused.check, reason=refused.reason)
                continue
            self.domain, self.anchors, self.etag = domain, anchors, etag
            self._pace(document)
            self._tell_bundle(result="replaced", anchors=[f"{anchor.serial_number:x}" for anchor in anchors])

    def _tell_bundle(self, **what):
        if what != self.last_told:
            self.last_told = what
            tell(event="bundle", **what)

    def _pace(self, document):
        self.interval = rules.refresh_hint(document) or self.interval

    def _fetch(self):
        """Trust domain, bundle and ETag, from the MIS or else from the file. The bundle is None after a 304."""
        if not self.options.mis:
            return self._static("no MIS is configured")
        try:
            status, body, _ = self._get(f"{self.options.mis}/.well-known/margo")
            document = rules.json_of(body, "bundle-fetched") if status == 200 else None
            if not isinstance(document, dict) or not document.get("trustBundleUri"):
                raise ValueError(f"no discovery document: status {status}")
            url, domain = document["trustBundleUri"], document.get("trustDomain", "")
        except (OSError, ValueError, http.client.HTTPException, rules.Refused) as error:
            if not self.options.bundle_uri:
                return self._static(f"discovery failed: {error}")
            url, domain = self.options.mis + self.options.bundle_uri, self._own_domain()
        try:
            status, body, etag = self._get(url, self.etag)
            if status == 304:
                return domain, None, self.etag
            if status != 200:
                raise ValueError(f"status {status}")
        except (OSError, ValueError, http.client.HTTPException) as error:
            return self._static(f"{url}: {error}")
        return domain, body, etag

    def _static(self, before):
        if not self.file:
            raise rules.Refused("bundle-fetched", f"{before}; and no bundle file is configured")
        return self._own_domain(), self.file, None

    def _own_domain(self):
        return self.options.trust_domain or rules.domain_of(self.svid.spiffe_id)

    def _get(self, url, etag=None):
        target = urlsplit(url)
        if target.scheme != "https" or not target.hostname:
            raise ValueError(f"{url} is not an https URL")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=self.ca.decode("ascii"))
        connection = http.client.HTTPConnection(target.hostname, target.port or 443)
        plain = socket.create_connection(self.address(target), timeout=10)
        with plain, context.wrap_socket(plain, server_hostname=target.hostname) as secured:
            connection.sock = secured
            headers = {"Accept": "application/json", "Connection": "close"}
            if etag:
                headers["If-None-Match"] = etag
            connection.request("GET", target.path or "/", headers=headers)
            response = connection.getresponse()
            return response.status, response.read(LARGEST), response.headers.get("ETag")

    def address(self, target):
        return self.hosts.get(target.hostname, target.hostname), target.port or 443


class Folder:
    """The directory that a path leads to at this moment, watched for changes of the path's last name.

    As inotify sees them: a directory that takes the place of this one, by a symlink that is swapped, is not
    looked at, and neither is the target of a symlink of this name.
    """

    def __init__(self, path):
        self.name = os.path.basename(os.path.abspath(path))
        try:
            self.directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise rules.Refused("authorized", f"{path}: {error.strerror}") from error
        self.seen = self._state()

    def wait(self):
        while (state := self._state()) is None or state == self.seen:
            if state is None:
                self.seen = None
            time.sleep(WATCH)
        self.seen = state

    def _state(self):
        try:
            entry = os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        except OSError:
            return None
        return entry.st_ino, entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns


def said(check, attempt):
    """The result of a check, with a line about it."""
    try:
        result = attempt()
    except rules.Refused as refused:
        tell(check=refused.check, result="refused", reason=refused.reason)
        raise
    tell(check=check, result="accepted")
    return result


def read(path, check):
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise rules.Refused(check, f"{path}: {error.strerror}") from error
    if not data.strip():
        raise rules.Refused(check, f"{path} is empty")
    return data


def fail(status, words):
    print(words, file=sys.stderr, flush=True)
    sys.exit(status)
