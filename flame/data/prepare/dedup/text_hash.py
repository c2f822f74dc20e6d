"""The hash of a document's text, by which equal documents are found and the held-out ones are chosen."""

import unicodedata

import xxhash

_SPACES = b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"  # what str.split() takes for white space among ASCII
_LOWER = bytes(range(65)) + bytes(range(97, 123)) + bytes(range(91, 256))


def text_hash(text: str, normalise: bool = True) -> bytes:
    """Hashes a text to 16 bytes; see ``bytes_hash``."""
    return bytes_hash(text.encode("utf-8", "surrogatepass"), normalise)


def bytes_hash(text: bytes, normalise: bool = True) -> bytes:
    """Hashes a text to 16 bytes.

    Args:
        text: Any text, as UTF-8; a lone surrogate does no harm.
        normalise: Whether case, white space and the Unicode normal form (NFC) make no difference.
    """
    if not normalise:
        return xxhash.xxh3_128_digest(text)
    if text.isascii():  # one pass of C code; the same result as below
        return xxhash.xxh3_128_digest(text.translate(_LOWER, _SPACES))
    plain = unicodedata.normalize("NFC", text.decode("utf-8", "surrogatepass")).lower()
    return xxhash.xxh3_128_digest("".join(plain.split()).encode("utf-8", "surrogatepass"))
