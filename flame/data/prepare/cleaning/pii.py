"""Masking personal data: e-mail addresses, IP addresses, telephone numbers."""

import re
from collections.abc import Callable

from datatrove.data import Document
from datatrove.pipeline.formatters.pii import public_ip_validator

from flame.data.prepare.cleaning.options import Pii
from flame.data.prepare.reporting.tally import Counting
from flame.data.prepare.steps import CountedFilter

# Bounded everywhere, and tried only where an address can begin: a long run of letters costs no more than its length.
# The signs that addresses have in practice: quotes, braces, slashes and `=` belong to what stands around them.
_LOCAL = r"A-Za-z0-9._%+-"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL = re.compile(
    rf"(?<![A-Za-z0-9])[A-Za-z0-9][{_LOCAL}]{{0,63}}@(?:{_LABEL}\.){{1,8}}[A-Za-z]{{2,24}}(?![A-Za-z0-9])"
)
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IP = re.compile(rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?![\w]|\.\w)")
# With a country code, or in groups of a national number; plain runs of digits are left alone.
_PHONE = re.compile(
    r"(?<![\w+.-])(?:\+[1-9]\d{0,2}[ .-]?(?:\(0?\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-])"
)
_FEWEST_DIGITS, _MOST_DIGITS = 8, 15


class Masking(CountedFilter):
    """Puts fixed words in place of personal data; drops nothing.

    Args:
        counting: Where the counts go.
        options: What is masked, and by what.
        spared: Inputs that pass untouched.
    """

    def __init__(self, counting: Counting, options: Pii, spared: frozenset[str]) -> None:
        super().__init__(counting)
        self.options = options
        self.spared = spared

    def judge(self, document: Document, position: int) -> str | None:
        """Masks a document."""
        if document.metadata["source"] not in self.spared:
            document.text, found = mask(document.text, self.options)
            for what, count in found.items():
                self.tally.add("masked", what, count)
        return None


def mask(text: str, options: Pii) -> tuple[str, dict[str, int]]:
    """Replaces personal data; returns the text and how many of each kind there were."""
    found: dict[str, int] = {}
    kinds: list[tuple[str, bool, re.Pattern[str], str, Callable[[str], bool]]] = [
        ("e-mail addresses", options.emails and "@" in text, _EMAIL, options.email_mask, lambda _: True),
        (
            "IP addresses",
            options.ips,
            _IP,
            options.ip_mask,
            lambda ip: public_ip_validator(ip, options.public_ips_only),
        ),
        ("telephone numbers", options.phones, _PHONE, options.phone_mask, _has_digits_of_a_phone),
    ]
    for what, wanted, pattern, replacement, is_one in kinds:
        if not wanted:
            continue
        count = 0

        def replaced(
            match: re.Match[str], replacement: str = replacement, is_one: Callable[[str], bool] = is_one
        ) -> str:
            nonlocal count
            if not is_one(match[0]):
                return match[0]
            count += 1
            return replacement

        text = pattern.sub(replaced, text)
        if count:
            found[what] = count
    return text, found


def _has_digits_of_a_phone(number: str) -> bool:
    return _FEWEST_DIGITS <= sum(character.isdigit() for character in number) <= _MOST_DIGITS
