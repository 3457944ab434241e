"""How the report writes numbers, names, and text that a model wrote."""

import unicodedata

from markupsafe import Markup, escape

from tpt_jax.prune.summary import FORMAT_ONLY, STRICT

DASH = "–"
MINUS = "−"
MAX_NAME = 120  # characters shown of a name or label
MAX_CHARACTERS = 6_000  # shown of a trace: the beginning, and the end, where the answer is

# Categories of invisible characters and of those that change the text around them: controls, direction marks, lone
# surrogates, private use, unassigned, line and paragraph separators.
ODD_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}

# Labels of verdicts in metrics.json that the page words differently; others are shown unchanged.
LABELS = {STRICT: "correct, in the requested format", FORMAT_ONLY: "correct, in another format"}


def percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f}%"


def interval(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:.1f} to {percent(bounds[1])}"


def points(difference: float) -> str:
    """A difference of two rates in percentage points, with its sign."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", MINUS)  # + 0.0: no negative zero


def count(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f}"


def number(value: float | None) -> str:
    """Three significant digits, or all digits before the decimal point."""
    return DASH if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def compact(value: float) -> str:
    """Three significant digits with a suffix: 1.6k."""
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


def stage_of_model(round_index: int) -> str:
    """Names the model that a round evaluated."""
    return "base model" if round_index == 0 else f"after round {round_index}"


def label(name: str) -> str:
    """A verdict's label as the page words it; a checker's reason may quote the model."""
    return LABELS.get(name) or plain(name)


def plain(text: str, limit: int = MAX_NAME) -> str:
    """Untrusted text for a name or a label, not escaped yet: odd characters as code points, cut at the limit."""
    shown = "".join(f"U+{ord(character):04X}" if _is_odd(character) else character for character in text[:limit])
    return " ".join(shown.split()) + ("…" if len(text) > limit else "")


def visible(text: str, limit: int = MAX_CHARACTERS) -> Markup:
    """Untrusted text: escaped, odd characters as their code points, the middle of a long text omitted."""
    num_omitted = len(text) - limit
    if num_omitted <= 0:
        return _escaped(text)
    tail = limit // 3
    note = Markup('<span class="note">[… {:,} characters omitted …]</span>').format(num_omitted)
    return Markup("\n").join((_escaped(text[: limit - tail]), note, _escaped(text[-tail:])))


def _escaped(text: str) -> Markup:
    return Markup("").join(
        Markup('<span class="odd">U+{:04X}</span>').format(ord(character)) if _is_odd(character) else escape(character)
        for character in text
    )


def _is_odd(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character) in ODD_CATEGORIES
