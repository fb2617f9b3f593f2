//! The codes of problems (docs/errors.md).

use super::open::words;

words! {
    /// What kind of problem an error is. docs/errors.md says of each what it means and what to do.
    pub enum ProblemCode {
        /// The configuration cannot be used.
        Configuration = "configuration",
        /// The state directory cannot be read or written.
        State = "state",
        /// Files, or a software key, could not be published.
        NotPublished = "not-published",
        /// The wall clock cannot be right.
        Clock = "clock",
        /// The key, or its provider, cannot be used now.
        Key = "key",
        /// The key cannot be used any more: what it is bound to is gone.
        KeyLost = "key-lost",
        /// The factory certificate or its key cannot be used.
        FactoryCredential = "factory-credential",
        /// The installed certificate chain or its key cannot be used.
        InstalledCredential = "installed-credential",
        /// The key has less protection than the configuration requires, or is too short.
        KeyTooWeak = "key-too-weak",
        /// No trust anchor is configured for the MIS.
        NoInitialTrust = "no-initial-trust",
        /// The configured trust anchors for the MIS cannot be used.
        InitialTrustUnusable = "initial-trust-unusable",
        /// The configured trust anchors cannot be used, and those before them stay in use.
        TrustNotReplaced = "trust-not-replaced",
        /// TLS could not be set up on this device.
        TlsSetup = "tls-setup",
        /// The proxy does not lead to the MIS.
        Proxy = "proxy",
        /// No network route leads from this device to the MIS.
        Offline = "offline",
        /// A host name cannot be resolved.
        NameNotResolved = "name-not-resolved",
        /// No connection to the MIS, or no response on it.
        Unreachable = "unreachable",
        /// The server is not authenticated by the initial trust.
        ServerNotTrusted = "server-not-trusted",
        /// The server refused this device's certificate in the TLS handshake.
        CertificateRefused = "certificate-refused",
        /// The server redirects.
        Redirected = "redirected",
        /// The response is not what the protocol says.
        MalformedResponse = "malformed-response",
        /// The discovery document has not been fetched yet.
        NotDiscovered = "not-discovered",
        /// The discovery document is refused.
        DiscoveryRefused = "discovery-refused",
        /// The discovery document says that the MIS does not do what is needed.
        UnsupportedByMis = "unsupported-by-mis",
        /// The trust bundle is refused.
        BundleRefused = "bundle-refused",
        /// The trust bundle holds no anchor.
        BundleEmpty = "bundle-empty",
        /// The trust bundle is older than the configuration allows.
        BundleStale = "bundle-stale",
        /// A renewal was asked for, and there is no SVID.
        NothingToRenew = "nothing-to-renew",
        /// The identity is obtained by the operator: only they can bring its next SVID.
        OperatorNeeded = "operator-needed",
        /// The identity has to be enrolled, and there is no enrollment token that may be used.
        TokenNeeded = "token-needed",
        /// The MIS does not accept the enrollment token.
        TokenRefused = "token-refused",
        /// The enrollment token that the configuration names cannot be used.
        TokenUnusable = "token-unusable",
        /// The CA of the EST server is not one of the trust bundle, or may not issue. No token was sent.
        IssuerNotTrusted = "issuer-not-trusted",
        /// The identity is obtained with the device's own, which is not valid now.
        DeviceIdentityNeeded = "device-identity-needed",
        /// The MIS's operator has yet to admit the device.
        PendingAdmission = "pending-admission",
        /// The MIS does not know the device, or no longer.
        NotAuthenticated = "not-authenticated",
        /// The MIS denies this device an identity.
        Denied = "denied",
        /// The MIS refuses the request as wrong: repeating it is of no use.
        RequestRefused = "request-refused",
        /// The MIS refuses another key.
        KeyRotationRefused = "key-rotation-refused",
        /// The MIS has no such address.
        NotFound = "not-found",
        /// The MIS limits how often it is asked.
        TooManyRequests = "too-many-requests",
        /// The MIS, or a server before it, responded with another error.
        ServerError = "server-error",
        /// The server is not the configured WFM, by its SVID.
        WfmNotTrusted = "wfm-not-trusted",
        /// The WFM refuses the device, or its request.
        WfmRefused = "wfm-refused",
        /// The issued SVID is refused.
        SvidRefused = "svid-refused",
        /// An issuer of the issued SVID has expired.
        IssuerExpired = "issuer-expired",
        /// The MIS issues no SVID that lasts longer than the last.
        IssuanceStalled = "issuance-stalled",
        /// The trust bundle does not vouch for the SVID.
        SvidNotTrusted = "svid-not-trusted",

        // Requests on the sockets that the agent refuses: no status has these.
        /// The request, or its body, is not what the API says.
        InvalidRequest = "invalid-request",
        /// The socket does not have the role that the request needs.
        Forbidden = "forbidden",
        /// The API has no such path.
        UnknownPath = "unknown-path",
        /// There is no identity with this name.
        UnknownIdentity = "unknown-identity",
        /// The path has no such method.
        MethodNotAllowed = "method-not-allowed",
        /// The admin command does not apply in the present state.
        NotApplicable = "not-applicable",
        /// The SVID that a signature is requested for has been replaced.
        SvidReplaced = "svid-replaced",
        /// The user has had too many signatures, or too many of them are pending.
        RateExceeded = "rate-exceeded",
        /// Too many connections are open, of this user or in all.
        ConnectionLimit = "connection-limit",
        /// There is no SVID yet, no trust bundle, or none that can be used now.
        NotAvailable = "not-available",
        /// The agent cannot accept the request now.
        Busy = "busy",
        /// The path is not served over this version of HTTP.
        UnsupportedVersion = "unsupported-version",
    }
}
