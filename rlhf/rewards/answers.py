"""Finding the answer in a response, and what it is worth as text and as a number."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
NUMBER = re.compile(rf"(?<![\w.)])[-+]?(?:{DIGITS})(?:/\d+(?!\.?\d))?|(?:{DIGITS})", re.ASCII)
"""A sign counts where nothing stands before it to subtract from: 5-3 holds 5 and 3."""
FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([^{}]+?)\s*\}\s*\{\s*([^{}]+?)\s*\}")
MEANINGLESS = re.compile(r"\\[,;:! ]|\\(?:left|right)\b|[$%\\]")
"""What LaTeX writes around a number: thin spaces, growing brackets, currency and percent signs."""


def after_last(response: str, mark: str) -> str | None:
    """What follows the last ``mark``; None without one. An empty mark stands before the whole response."""
    _, found, rest = response.rpartition(mark) if mark else ("", True, response)
    return rest if found else None


def normalised(text: str) -> str:
    """Unicode NFKC, case folded, one blank between words, no quotation marks or stops around it."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip("\"'`“”‘’.,;:!? ")


def boxed(text: str) -> str | None:
    r"""What the last ``\boxed{…}`` holds, braces inside it balanced; None without one that is closed."""
    _, found, rest = text.rpartition(r"\boxed{")
    depth = 1
    for place, letter in enumerate(rest if found else ""):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[:place]
    return None


def number(text: str, *, whole: bool = False) -> Fraction | None:
    """The last number in the text as an exact fraction; None where there is none.

    Args:
        text: digits with a decimal point, commas between thousands, a sign, and a denominator if any.
        whole: only a text that is nothing but the number counts.
    """
    plain = MEANINGLESS.sub("", FRACTION.sub(r"\1/\2", text.replace("−", "-"))).strip()
    matches = list(NUMBER.finditer(plain))
    if not matches or (whole and matches[-1].group() != plain):
        return None
    above, _, below = matches[-1].group().replace(",", "").partition("/")
    try:
        return Fraction(above) / Fraction(below or "1")
    except (ValueError, ZeroDivisionError):  # more digits than Python converts, or nothing to divide by
        return None
