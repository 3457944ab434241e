"""The numeric checker: reads a trace's final number and compares it exactly with the reference answer.

Reads "$1,234.50", "1,30,000", "-3", "2 1/2", "½", "18.00", "50%", "1.5 million", "1e2", "4 × 10^3", "twenty-five" and
their LaTeX forms. Expressions are never evaluated.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping
from fractions import Fraction

from tpt_jax.checks.answers.announce import MAX_ANSWER_CHARACTERS, Announcement, Kind
from tpt_jax.checks.answers.doubt import is_undecided
from tpt_jax.checks.answers.extract import Missing, Reader, extract_answer
from tpt_jax.checks.answers.turns import last_output
from tpt_jax.records import Question, Verdict

MAX_LINE_CHARACTERS = 2_000  # of a line without an announcement, only its end is read
MIN_ROUNDED_DECIMALS = 5  # of a reference that may be a rounded value
ROUNDING_ERROR = Fraction(1, 10**14)  # relative, of a reference that a program computed in floating point
MAX_NUMBER_CHARACTERS = 60  # longer ones are skipped: no question has such an answer, and big integers are slow

# Signs and words that scale the number before them.
SCALES: Mapping[str, Fraction] = {
    "%": Fraction(1, 100),
    "percent": Fraction(1, 100),
    "k": Fraction(10**3),
    "dozen": Fraction(12),
    "dozens": Fraction(12),
    "hundred": Fraction(10**2),
    "thousand": Fraction(10**3),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
}

# Possessive quantifiers: a failed lookahead must not make the match shorter, or 12:43 would be read as 1.
_DECIMAL = (
    r"\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)(?:\.\d++)?+"  # 1,234.50 and also 1,30,000
    r"|\d++,\d{1,2}(?![\d,])"  # a decimal comma
    r"|\d++(?:\.\d++)?+|\.\d++"
)
NUMBER = re.compile(
    rf"""
    (?<![\w.^])(?<!\d:)
    (?:(?<![\d)%]\ )\b(?P<negative>negative|minus)\ )?
    (?P<sign>[-−–])?(?:[$£€₹]\s?)?(?P<minus>[-−])?
    (?P<digits>{_DECIMAL})(?::00)?(?!:\d|\d)
    (?:[eE](?P<exponent>[-+]?\d{{1,2}})(?!\d)
      |\s?(?:×|\*|x)\s?10\s?(?:\^|\*\*)\s?\{{?(?P<power>[-−]?\d{{1,2}})\}}?(?!\d))?
    (?:(?:\s(?:and\s)?(?P<numerator>\d++))?\s?/\s?(?P<denominator>\d++(?:\.\d++)?+)(?![\d/]))?
    (?:(?P<scale>k\b)|\s?(?P<percent>%|percent\b)|\s(?P<word>dozens?|hundred|thousand|million|billion|trillion)\b)?
    """,
    re.VERBOSE,
)

_LATEX_TO_PLAIN = (
    (re.compile(r"(\d)?\s*\\[dt]?frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}"), r"\1 \2/\3"),
    (re.compile(r"(\d)?\s*\\[dt]?frac\s*(\d)\s*(\d)"), r"\1 \2/\3"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{"), " "),
    (re.compile(r"\{,\}|\\,(?=\d{3})"), ","),
    (re.compile(r"\\(?:times|cdot)\b"), "×"),
    (re.compile(r"\\div\b"), "÷"),
    (re.compile(r"\\approx\b"), "="),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\[,;: ]|\\(?:left|right)\b|\^\s*\{?\\circ\}?"), " "),
)
_VULGAR_FRACTIONS = {
    **{"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5"},
    **{"⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"},
}
_TO_ASCII = str.maketrans({**{sign: f" {text}" for sign, text in _VULGAR_FRACTIONS.items()}, "≈": "=", "％": "%"})
_UNDERSCORES = re.compile(r"(?<!\w)_+(?=[$\d])|(?<=\d)_+(?!\w)")  # _18_ in Markdown
_THOUSANDS_SEPARATOR = re.compile(r"(?<=\d)[\u00a0\u2009\u202f'’](?=\d{3}(?!\d))")

_BELOW_TWENTY = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBER_WORDS: Mapping[str, int] = {
    **{word: value for value, word in enumerate(_BELOW_TWENTY)},
    **{word: 10 * value for value, word in enumerate(_TENS, start=2)},
}
_MULTIPLIERS = {word: int(SCALES[word]) for word in ("hundred", "thousand", "million", "billion")}
# Words that make the number words before them part of something other than a whole number.
_NOT_WHOLE = frozenset(
    (
        *("half", "halves", "third", "thirds", "quarter", "quarters", "fourth", "fourths", "fifth", "fifths", "tenth"),
        *("tenths", "point", "dozen", "percent", "or", "to", "of", "plus", "minus", "times", "divided", "more", "less"),
    )
)
_WORD = re.compile(r"[a-z]+")


@dataclasses.dataclass(frozen=True, slots=True)
class Number:
    """A number read from a text.

    Attributes:
      value: the number as written, not scaled by its unit.
      unit: the sign or word that scales it, a key of SCALES; "" for none.
    """

    value: Fraction
    unit: str = ""

    def possible_values(self, question: str) -> frozenset[Fraction]:
        """The values it can stand for.

        50% is 50 or 0.5, but 1200% is not 12. 3 million is 3 only if the question mentions millions.
        """
        if not self.unit:
            return frozenset((self.value,))
        scaled = self.value * SCALES[self.unit]
        if self.unit in ("%", "percent"):
            is_count = scaled.denominator == 1 and abs(scaled) > 1
            return frozenset((self.value,) if is_count else (self.value, scaled))
        both = self.unit != "k" and self.unit in question.lower()
        return frozenset((self.value, scaled) if both else (scaled,))

    def equals(self, other: "Number", question: str = "") -> bool:
        """Whether both can stand for the same value in an answer to the question."""
        if not (self.unit or other.unit):
            return self.value == other.value
        if self.unit and other.unit:
            return self.value * SCALES[self.unit] == other.value * SCALES[other.unit]
        return not self.possible_values(question).isdisjoint(other.possible_values(question))


def is_equivalent(reference: Number, answer: Number, question: str = "") -> bool:
    """Whether an answer meets the reference; the exact value that a long decimal rounds does: 5/6 for 0.8333333333."""
    if answer.equals(reference, question):
        return True
    if reference.value.denominator == 1:
        return False
    decimals = len(canonical(reference.value).partition(".")[2])
    difference = abs(answer.value - reference.value)
    is_rounded = 2 * difference * 10**decimals <= 1 or difference <= abs(reference.value) * ROUNDING_ERROR
    return decimals >= MIN_ROUNDED_DECIMALS and answer.unit == reference.unit and is_rounded


def plain(text: str) -> str:
    """Rewrites LaTeX and Unicode forms of numbers in plain characters."""
    if "\\" in text or "{" in text:
        for pattern, replacement in _LATEX_TO_PLAIN:
            text = pattern.sub(replacement, text)
    if "_" in text:
        text = _UNDERSCORES.sub("", text)
    if not text.isascii():
        text = _THOUSANDS_SEPARATOR.sub(",", text).translate(_TO_ASCII)
    return text


def find_numbers(text: str) -> list[tuple[re.Match[str], Number]]:
    """The numbers of a plain text and their matches, in order."""
    numbers = ((match, _read_match(match)) for match in NUMBER.finditer(text))
    return [(match, number) for match, number in numbers if number is not None]


def parse_number_words(text: str) -> Number | None:
    """Reads number words at the start of a text: "Twenty-five apples" is 25; None for "one of them" and "one half"."""
    words = _WORD.findall(text[:MAX_NUMBER_CHARACTERS].lower())
    is_negative = words[:1] in (["negative"], ["minus"])
    total = group = index = 0
    words = words[is_negative:]
    for index, word in enumerate([*words, ""]):
        if word in _NUMBER_WORDS:
            if group % 10 or (group % 100 and _NUMBER_WORDS[word] > 9):  # "one two"
                return None
            group += _NUMBER_WORDS[word]
        elif word == "hundred" and index:
            group *= 100
        elif word in _MULTIPLIERS and index:
            total, group = total + group * _MULTIPLIERS[word], 0
        elif word != "and" or not index or words[index - 1] not in _MULTIPLIERS:
            break
    decimals = _decimal_words(words[index:]) if index else ""
    if decimals:
        value = Fraction(f"{total + group}.{decimals}")
        return Number(-value if is_negative else value)
    if index == 0 or (words[index : index + 1] and words[index] in _NOT_WHOLE):
        return None
    if words[index : index + 1] == ["and"] and set(words[index + 1 : index + 3]) & (_NOT_WHOLE | _NUMBER_WORDS.keys()):
        return None
    return Number(Fraction(-(total + group) if is_negative else total + group))


def _decimal_words(words: list[str]) -> str:
    """The digits after "point": "62" of "point six two"; "" for none."""
    digits = itertools.takewhile(lambda word: _NUMBER_WORDS.get(word, 10) < 10, words[1:])
    return "".join(str(_NUMBER_WORDS[word]) for word in digits) if words[:1] == ["point"] else ""


def canonical(value: Fraction) -> str:
    """The canonical spelling of a number: "18", "-0.5", "1/3"."""
    cofactor = value.denominator
    for factor in (2, 5):
        while cofactor % factor == 0:
            cofactor //= factor
    if value.denominator == 1 or cofactor != 1:  # whole, or not a finite decimal
        return str(value)
    decimals = 0
    while (value * 10**decimals).denominator != 1:
        decimals += 1
    digits = f"{abs(value.numerator) * 10**decimals // value.denominator:0{decimals + 1}}"
    return f"{'-' if value < 0 else ''}{digits[:-decimals]}.{digits[-decimals:]}"


def _read_match(match: re.Match[str]) -> Number | None:
    """Reads a match of NUMBER; None if it is too long or divides by zero."""
    if len(match.group()) > MAX_NUMBER_CHARACTERS:
        return None
    digits, numerator, denominator = match["digits"], match["numerator"], match["denominator"]
    is_decimal_comma = digits.count(",") == 1 and len(digits) - digits.index(",") <= 3
    plain_digits = digits.replace(",", "." if is_decimal_comma else "")
    value = Fraction(int(plain_digits) if plain_digits.isdecimal() else plain_digits)  # an int is read much faster
    power = match["exponent"] or match["power"]
    if power is not None:
        value *= Fraction(10) ** int(power.replace("−", "-"))
    if denominator is not None:
        divisor = Fraction(denominator)
        if divisor == 0:
            return None
        value = value + Fraction(numerator) / divisor if numerator is not None else value / divisor
    is_negative = match["negative"] or match["sign"] or match["minus"]
    return Number(-value if is_negative else value, match["scale"] or match["percent"] or match["word"] or "")


# What announces a final answer in lm-evaluation-harness 0.4, tasks/gsm8k/gsm8k.yaml: what strict-match extracts, and
# what its comparison ignores.
STRICT = re.compile(r"#### (-?[0-9.,]+)")
STRICT_IGNORES = re.compile(r",|\$|\.$")

_DIGIT = re.compile(r"\d")
_BOLD = re.compile(r"\*\*([^*\n]*\d[^*\n]*)\*\*")
_PARENTHESES = re.compile(r"\([^()]*\)")
_EXPLANATION = re.compile(r"\b(?:since|because|as|given|where|which|so that|representing|out of)\b|\. ")  # follows
# Between two numbers these mean an unfinished calculation.
_OPERATOR = re.compile(r"[\s)}]*(?:[-+*×÷^–/<>≤≥:]|\bx\b|\btimes\b|\bplus\b|\bminus\b|\bover\b|\bdivided by\b)[\s({$]*")
_PHRASE = re.compile(r"(?!.*(?:[,;&]|\b(?:and|or|to)\b))\W*\w+\W+\w+.*", re.DOTALL)  # two words or more, no list
_NOT_A_NUMBER = re.compile(r"\\sqrt|\\pi\b|[√π]|\bpi\b|[<>≤≥]\s*\d")
# Right after a number these make it part of something larger: a power, a product, a mixed number.
_CONTINUATION = re.compile(
    r"\)?\s?(?:\^|\*\*(?=[\d({])|[²³])|[nxyzKMB]\b|\s(?:squared|cubed)\b|\s(?:and\s)?an?\s(?:half|quarter|third)\b"
    r"|\s*[-+*/×÷]\s*[A-Za-z](?![A-Za-z'])"  # 160 - r
)
_VARIABLE_BEFORE = re.compile(r"(?<![A-Za-z'])[A-Za-z]\s*[-+*/×÷]\s*$|(?<![A-Za-z'])[b-zB-HJ-Z]\s+$")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d|[.,]\d)")
_SENTENCE_BREAK = re.compile(r"(?<=[.!?])\s+(?=[A-Z\d$*(\"'])")
_CIRCUMSTANCE = re.compile(r"\s(?:from|if|when|by|after|in order to|to)\s")
_RESULT = re.compile(r"=([^=\n]*)")


def check_numeric(question: Question, completion: str, *, is_finished: bool = True) -> Verdict:
    """Compares final numbers exactly: 18, $18.00, eighteen and 18 dollars are equal.

    Strict as in lm-evaluation-harness's gsm8k strict-match.
    """
    reference = parse_number(question.answer)
    if reference is None:
        return Verdict.unreadable()
    answer = extract_answer(completion, NUMBER_READER, is_finished=is_finished)
    if isinstance(answer, Missing):
        return Verdict.wrong(answer.value)
    correct = is_equivalent(reference, answer.value, question.question)
    strict = correct and matches_strictly(question.answer, completion)
    return Verdict(canonical(answer.value.value), strict=strict, correct=correct)


def matches_strictly(answer: str, completion: str) -> bool:
    """Whether lm-evaluation-harness's gsm8k strict-match accepts it: compares the first "#### number" as a string."""
    match = STRICT.search(completion)
    return match is not None and STRICT_IGNORES.sub("", match[1]) == STRICT_IGNORES.sub("", answer.strip())


@functools.lru_cache(maxsize=4_096)  # every sample of a question has the same reference answer
def parse_number(text: str) -> Number | None:
    """Reads a text that is one number: "$1,234.50", "-3", "1/2", "50%", "5 apples"; None for any other text."""
    number = _read_statement(plain(text[:MAX_ANSWER_CHARACTERS]))
    return number if isinstance(number, Number) else None


class NumberReader(Reader[Number]):
    """Reads numbers in announcements."""

    def read(self, announcement: Announcement) -> Number | Missing:
        """Reads 18 in "$18 dollars", 20 in "4 * 5 = 20", 4 in "he is 5 feet in **4 years**"."""
        if announcement.is_passage and announcement.kind is not Kind.HASHES:
            last = self.read_last(_without_circumstance(announcement.text))
            return parse_number_words(announcement.text) or last if last is Missing.NONE else last
        line, _, passage = announcement.text.partition("\n")
        line = plain(line)
        value = Missing.NONE if is_undecided(line) else _read_statement(line)
        # "#### Conclusion": the answer follows the heading
        return self.read_last(passage) if value is Missing.NONE and announcement.is_passage else value

    def read_last(self, text: str) -> Number | Missing:
        """Reads the last line that has a number: a bold one, the result of the last equation, or the last number."""
        return self.read_conclusion(text)[0]

    def read_conclusion(self, text: str) -> tuple[Number | Missing, str]:
        """As read_last."""
        lines = (last_output(text) or text).splitlines()
        for index in reversed(range(len(lines))):
            line = plain(lines[index][-MAX_LINE_CHARACTERS:])
            if number := _read_end(line, text):
                return number, "\n".join([line[find_numbers(line)[-1][0].end() :], *lines[index + 1 :]])
        return Missing.NONE, ""

    def are_same(self, left: Number, right: Number) -> bool:
        return left == right


NUMBER_READER = NumberReader()


def _without_circumstance(text: str) -> str:
    """A sentence up to what it only mentions: "He earned $1000" of "He earned $1000 from selling 200 bags"."""
    is_one_sentence = "\n" not in text.strip() and not re.search(r"[.!?;,]\s|=|\band\b", text)
    before = _CIRCUMSTANCE.split(text)[0] if is_one_sentence else ""
    return before if find_numbers(plain(before)) else text


def _read_statement(line: str) -> Number | Missing:
    """Reads the one number of a plain statement."""
    clause = _EXPLANATION.split(line, maxsplit=1)[0]
    clause = clause if _DIGIT.search(clause) else line
    if "=" not in clause and (side := _read_side(clause)) is not Missing.NONE:
        return side
    parsed = {side: _read_side(side) for side in clause.split("=")}
    values = {side: result for side, result in parsed.items() if isinstance(result, Number)}
    if len(values) > 1 and len(set(values.values())) > 1:  # "32 / 3 = 10.67": the fraction is the calculation
        values = {side: value for side, value in values.items() if "/" not in side}
    if values:
        # Still several: "16 oz = 1 lb".
        is_several = len(values) > 1 and len(set(values.values())) > 1
        return Missing.SEVERAL if is_several else values.popitem()[1]
    missing = [result for result in parsed.values() if isinstance(result, Missing) and result is not Missing.NONE]
    return missing[-1] if missing else parse_number_words(line.lstrip("*[( \t")) or Missing.NONE


def _read_side(text: str) -> Number | Missing:
    """Reads the one number of a text without "="."""
    bold = _BOLD.search(text) if "**" in text else None
    without_parentheses = _PARENTHESES.sub(" ", text) if "(" in text else text
    if bold:
        text = bold[1]
    elif _DIGIT.search(without_parentheses):
        text = without_parentheses
    text = _joined_thousands(text)
    numbers = find_numbers(text)
    if not numbers:
        return Missing.NONE
    if _NOT_A_NUMBER.search(text) or any(_is_operand(text, match) for match, _ in numbers):
        return Missing.UNFINISHED
    gaps = [
        text[left.end() : right.start()] + (right["sign"] or "" if right.start() > left.end() else "")
        for (left, _), (right, _) in itertools.pairwise(numbers)
    ]
    if any(map(_OPERATOR.fullmatch, gaps)):
        return Missing.UNFINISHED
    first = numbers[0][1]
    if all(number == first for _, number in numbers):
        return first
    leads = not text[: numbers[0][0].start()].strip("*[( \t")
    return first if leads and _PHRASE.match(gaps[0]) else Missing.SEVERAL


def _joined_thousands(text: str) -> str:
    """Spells 118 000 as 118000."""
    return _SPACED_THOUSANDS.sub(lambda match: match[0].replace(" ", ""), text)


def _is_operand(text: str, match: re.Match[str]) -> bool:
    """Whether a number is part of a formula with a variable, or of something larger."""
    start = match.end("sign") if match["sign"] else match.start()
    return bool(_CONTINUATION.match(text, match.end()) or _VARIABLE_BEFORE.search(text[:start]))


def _read_end(line: str, text: str) -> Number | Missing | None:
    """Reads the number that ends a plain line; None if it has none.

    Args:
      text: the whole text; the result of its last equation is preferred, if the line repeats it.
    """
    outside = _PARENTHESES.sub(" ", line) if "(" in line else line
    line = _joined_thousands(outside if find_numbers(outside) else line)
    if not (found := find_numbers(line)):
        return None
    if is_undecided(line):
        return Missing.NONE
    bold = [number for bold_text in _BOLD.findall(line) for _, number in find_numbers(bold_text)]
    if bold:
        return bold[-1]
    for sentence in reversed(_SENTENCE_BREAK.split(line)):
        if in_sentence := find_numbers(sentence):
            line, found = sentence, in_sentence
            break
    results = [number for _, number in find_numbers(plain(_RESULT.findall(text)[-1]))] if "=" in text else []
    if results and any(number == results[0] and not _is_operand(line, match) for match, number in found):
        return results[0]
    return Missing.UNFINISHED if _is_operand(line, found[-1][0]) else found[-1][1]
