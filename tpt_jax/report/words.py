"""Numbers and texts as the report writes them."""

import unicodedata

from markupsafe import Markup, escape

DASH = "–"
MINUS = "−"
LONGEST_TEXT = 6_000  # characters shown of a trace: its beginning, and its end, where the answer is

# Categories of characters that act on what is around them, or that show as nothing: controls, direction marks, lone
# surrogates, private use, unassigned, line and paragraph separators.
ODD = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f}%"


def interval(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:.1f} to {percent(bounds[1])}"


def points(difference: float) -> str:
    """A difference of two rates in percentage points, with its sign."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", MINUS)  # + 0.0: no negative zero


def count(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f}"


def figure(value: float | None) -> str:
    """Three digits, or all of them before the point."""
    return DASH if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def compact(value: float) -> str:
    for power, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:.3g}{suffix}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def round_name(index: int) -> str:
    return "the model as given" if index == 0 else f"after round {index}"


def visible(text: str, limit: int = LONGEST_TEXT) -> Markup:
    """A stranger's text: escaped, odd characters as their code points, the middle of a very long one left out."""
    left_out = len(text) - limit
    if left_out <= 0:
        return _shown(text)
    end = limit // 3
    note = Markup('<span class="note">[… {:,} characters left out …]</span>').format(left_out)
    return Markup("\n").join((_shown(text[: limit - end]), note, _shown(text[-end:])))


def _shown(text: str) -> Markup:
    return Markup("").join(
        Markup('<span class="odd">U+{:04X}</span>').format(ord(character)) if _is_odd(character) else escape(character)
        for character in text
    )


def _is_odd(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character) in ODD
