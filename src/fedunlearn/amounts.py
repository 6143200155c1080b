"""Large numbers, amounts of bytes, percents and p-values, as people write and read them; and texts of others."""

from __future__ import annotations

import math
import re

__all__ = ["brief", "parse_bytes", "printable", "scaled", "tell_bytes", "tell_p", "tell_percent"]

_PREFIXES = "kMGTPE"
_DECIMAL = {"B": 1, **{f"{prefix}B": 1000**power for power, prefix in enumerate(_PREFIXES, 1)}}
_BINARY = {f"{prefix}iB": 1024**power for power, prefix in enumerate(_PREFIXES.upper(), 1)}
_UNITS: dict[str, int] = {"": 1, "KB": 1000, **_DECIMAL, **_BINARY}
_AMOUNT = re.compile(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*([A-Za-z]*)")


def parse_bytes(text: str) -> int:
    """Bytes, from ``2GB``, ``1.5 MiB`` or a plain number, ``2e9``: kB to EB are powers of 1000, KiB to EiB of 1024.

    Raises:
        ValueError: it is no such amount.
    """
    found = _AMOUNT.fullmatch(text.strip())
    number = float((found[1] or "") + (found[2] or "")) if found else math.inf
    if found is None or math.isinf(number):
        raise ValueError(f"{text!r} is no amount of bytes: write it as 2GB, 500MiB or 2000000")
    if found[3] not in _UNITS:
        raise ValueError(f"there is no unit {found[3]!r} of bytes: write {', '.join((*_DECIMAL, *_BINARY))}, or none")
    return round(number * _UNITS[found[3]])


def tell_bytes(amount: float) -> str:
    """Three digits and a unit, in powers of 1000."""
    digits, prefix = scaled(amount)
    return f"{digits} {prefix}B"


def tell_p(p: float) -> str:
    """A p-value to three decimals; one that is smaller is told by its bound, for it is never 0."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def tell_percent(value: float | None) -> str:
    """An accuracy in percent to two decimals; None: nobody has measured it."""
    return "not known" if value is None else f"{value:.2f} %"


def printable(text: str) -> str:
    """What others have written, without what could move a terminal's cursor or hide a word."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def brief(text: str, most: int = 1000) -> str:
    """A sentence with words of others in it: `printable`, in one line, and of so many characters at most."""
    return printable(text if len(text) <= most else f"{text[: most - 3]}...")


def scaled(number: float) -> tuple[str, str]:
    """Three digits, and the prefix of the power of 1000 that they are to be multiplied by; "" for 1."""
    for power, prefix in enumerate(("", *_PREFIXES)):
        digits = f"{number / 1000**power:.3g}"
        if abs(float(digits)) < 1000:
            return digits, prefix
    return digits, prefix
