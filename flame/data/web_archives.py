"""Records of web archives (WARC, WET), as warcio gives them."""

from typing import Any

_CHUNK = 1 << 16


def is_whole(record: Any) -> bool:
    """Reads a record to its end and says whether it has the length that it announces.

    An archive that is cut off ends before that, or within the header that would say it; warcio takes both for an end.
    """
    rest = record.raw_stream
    while rest.read(_CHUNK):
        pass
    return record.rec_headers.get_header("Content-Length") is not None and not getattr(rest, "limit", 0)
