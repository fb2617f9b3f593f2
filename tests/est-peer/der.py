"""ASN.1 in DER, and in the two forms of BER that are met in practice.

Written from X.690, so that neither the PKCS#7 nor the comparison of names depends on a library.
"""

SEQUENCE, SET = 0x30, 0x31
BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
UTF8_STRING, GENERALIZED_TIME = 0x0C, 0x18
CONSTRUCTED = 0x20


def context(number, constructed=True):
    """The tag `[number]`."""
    return 0x80 | number | (CONSTRUCTED if constructed else 0)


class Node:
    """An element whose content is bytes, or a list of nodes and of encoded elements."""

    def __init__(self, tag, content=b""):
        self.tag, self.content = tag, content

    def encode(self, form="der"):
        """`der`; `indefinite`: every constructed one of indefinite length; `long`: lengths in four bytes."""
        if isinstance(self.content, bytes):
            return bytes([self.tag]) + length(len(self.content), form) + self.content
        content = b"".join(one if isinstance(one, bytes) else one.encode(form) for one in self.content)
        if form == "indefinite":
            return bytes([self.tag, 0x80]) + content + b"\x00\x00"
        return bytes([self.tag]) + length(len(content), form) + content


def length(size, form="der"):
    if form == "long":
        return b"\x84" + size.to_bytes(4, "big")
    if size < 0x80:
        return bytes([size])
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(digits)]) + digits


def sequence(*content):
    return Node(SEQUENCE, list(content))


def integer(value):
    return Node(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted):
    first, second, *others = map(int, dotted.split("."))
    encoded = bytearray()
    for arc in [first * 40 + second, *others]:
        digits = [arc & 0x7F]
        while arc := arc >> 7:
            digits.append(0x80 | arc & 0x7F)
        encoded += bytes(reversed(digits))
    return Node(OID, bytes(encoded))


class Element:
    """An element that was read: tag, content, and all of its bytes. DER only."""

    def __init__(self, data, start=0):
        if len(data) < start + 2:
            raise ValueError("it ends within an element")
        self.tag, size, begin = data[start], data[start + 1], start + 2
        if self.tag & 0x1F == 0x1F or size == 0x80:
            raise ValueError("an element that is not DER")
        if size > 0x80:
            count = size & 0x7F
            size, begin = int.from_bytes(data[begin : begin + count], "big"), begin + count
            if count > 4 or length(size) != data[start + 1 : begin]:
                raise ValueError("a length that is not DER")
        self.end = begin + size
        if self.end > len(data):
            raise ValueError("it ends within an element")
        self.content, self.raw = data[begin : self.end], data[start : self.end]

    def children(self):
        found, at = [], 0
        while at < len(self.content):
            found.append(Element(self.content, at))
            at = found[-1].end
        return found


def parse(data):
    """The one element of these bytes."""
    element = Element(data)
    if element.end != len(data):
        raise ValueError(f"{len(data) - element.end} bytes follow the element")
    return element


SAN = oid("2.5.29.17").encode()
EXTENSION_REQUEST = oid("1.2.840.113549.1.9.14").encode()


def names_of_certificate(data):
    """The raw subject of a certificate, and its SAN extension as (critical, value) or `None`."""
    fields = parse(data).children()[0].children()
    if fields[0].tag == context(0):
        fields = fields[1:]
    extensions = [field for field in fields if field.tag == context(3)]
    return fields[4].raw, san(extensions[0].children()[0]) if extensions else None


def names_of_request(data):
    """The same of a certification request; and the object identifiers of its attributes, encoded."""
    fields = parse(data).children()[0].children()
    attributes = fields[3].children() if len(fields) > 3 else []
    kinds, found = [], None
    for attribute in attributes:
        kind, values = attribute.children()
        kinds.append(kind.raw)
        if kind.raw == EXTENSION_REQUEST:
            found = san(values.children()[0])
    return fields[1].raw, found, kinds


def san(extensions):
    for extension in extensions.children():
        kind, *rest = extension.children()
        if kind.raw == SAN:
            critical = rest[0].tag == BOOLEAN and rest[0].content == b"\xff"
            return critical, rest[-1].content
    return None
