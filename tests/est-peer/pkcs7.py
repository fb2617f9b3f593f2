"""Certificates-only PKCS#7 (RFC 2315 and RFC 5652; RFC 7030, 4.1.3), in each way that it is met."""

from der import OCTET_STRING, SET, Node, context, integer, oid, sequence

DATA, SIGNED_DATA = "1.2.840.113549.1.7.1", "1.2.840.113549.1.7.2"


def certs_only(certificates, form="der", version=1, crls=None, others=(), content=None, in_order=False):
    """SignedData without signers.

    `crls`: `None`, or the encoded ones of a field that is there, be it empty. `others`: further encoded
    elements of the SET of certificates. `in_order`: unsorted, which is not DER.
    """
    bag = [*certificates, *others]
    fields = [
        integer(version),
        Node(SET, []),
        sequence(oid(DATA), *([] if content is None else [Node(context(0), [Node(OCTET_STRING, content)])])),
        Node(context(0), bag if in_order else sorted(bag)),
    ]
    if crls is not None:
        fields.append(Node(context(1), list(crls)))
    fields.append(Node(SET, []))
    return sequence(oid(SIGNED_DATA), Node(context(0), [sequence(*fields)])).encode(form)


def enveloped():
    """A ContentInfo of another kind."""
    return sequence(oid("1.2.840.113549.1.7.3"), Node(context(0), [sequence(integer(0))])).encode()
