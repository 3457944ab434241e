"""Which part of a trace is read: neither hidden reasoning nor invented turns; and whether its end is missing."""

import re

MAX_TEXT_CHARACTERS = 100_000  # final answers come last, so only the end of a longer trace is read
MAX_LAST_CHARACTERS = 500  # where a traceback may end

_OPEN_THINKING, _END_OF_THINKING = "<think>", "</think>"  # hidden reasoning of R1, Qwen 3 and similar models

# Base models often keep writing and invent the next turn or problem, in many dresses.
_NEXT_TURN = re.compile(
    r"\n[ \t]*(?:(?:#{1,6}[ \t]*)?[\[(*]*(?:(?:Next |New |Another )?"
    r"(?:Question|Problem|Exercise|Instruction|Example|Q)(?:[ \t]*#?\d{1,3})?|Human|User)[\])*]*[ \t]*"
    r"(?:[:\]]|\.(?=\s)|(?<=[\])])|$)"
    r"|#{1,6}[ \t]*\**(?:Question|Problem|Exercise|Instruction|Example)(?:[ \t]*\d{1,3})?\**[ \t]*$"
    r"|(?:user|assistant|human)[ \t]*$)",
    re.MULTILINE,
)
_SAME_LINE_TURN = re.compile(r"(?<=[\d.)}])[ \t]*[\[(*]*(?:Question|Problem|Example|Q)(?:[ \t]*\d{1,3})?[\])*]*[ \t]*:")
_END_OF_TURN = re.compile(
    r"<(?:\|(?:im_start|im_end|eot_id|start_header_id|endoftext|end_of_text|user|assistant|end)\||(?:start|end)_of_turn"
    r"|/?s)>|\[/?INST\]"
)

_LAST_OUTPUT = re.compile(r"```output\n([^`]*)```\s*\Z")
_TRACEBACK = re.compile(r"\n\s*\w*(?:Error|Exception)\b[^\n]*[\s`]*$")
_EMPTY_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{\s*\}")
_OPERATOR_END = re.compile(r"(?<!\*)[-+/=^({\\]\s*$")
_OPEN_FORMULA = re.compile(r"\$[^$]*[\\^_{][^$]*$")


def visible_text(completion: str) -> str:
    """The end of a trace without hidden reasoning, be it closed or not."""
    start, end = visible_span(completion)
    return completion[start:end]


def visible_span(completion: str) -> tuple[int, int]:
    """Where visible_text is in the trace."""
    closed = completion.rfind(_END_OF_THINKING)
    start = max(0, len(completion) - MAX_TEXT_CHARACTERS, closed + len(_END_OF_THINKING) if closed >= 0 else 0)
    opened = completion.find(_OPEN_THINKING, start)
    return start, len(completion) if opened < 0 else opened


def is_open(text: str) -> bool:
    """Whether a text ends in the middle of a code fence or a formula or in a traceback, or left its box empty."""
    return bool(
        text.count("```") % 2
        or text.count("$$") % 2
        or text.rfind(r"\[") > text.rfind(r"\]")
        or text.rfind(r"\(") > text.rfind(r"\)")
        or _EMPTY_BOX.search(text)
        or _TRACEBACK.search(text[-MAX_LAST_CHARACTERS:])
        or _is_unfinished(text.rstrip().rpartition("\n")[2])
    )


def last_output(text: str) -> str:
    """The output of a program that a text ends with; "" for none. Nothing before it is then the answer."""
    match = _LAST_OUTPUT.search(text)
    return match[1] if match else ""


def _is_unfinished(line: str) -> bool:
    """Whether a last line ends in an operator, or in a formula that was opened on it."""
    is_formula = line.count("$") % 2 == 1 and _OPEN_FORMULA.search(line) is not None
    return is_formula or _OPERATOR_END.search(line) is not None


def end_of_turn(text: str, start: int) -> int:
    """Where the turn that `start` is in ends: at a speaker's name, a heading or a token of a next turn."""
    matches = (pattern.search(text, start) for pattern in (_END_OF_TURN, _NEXT_TURN, _SAME_LINE_TURN))
    return min((match.start() for match in matches if match), default=len(text))
