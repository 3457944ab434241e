"""The program in a completion. It is parsed and never run here."""

import ast
import builtins
import dataclasses
import hashlib
import re
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence

from tpt_jax.checks.answers.conclusion import conclusion

LONGEST_COMPLETION = 100_000  # characters; nobody's answer to these tasks is longer, and parsing is not quick

_CLOSED = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[ \t]*$", re.MULTILINE)
_FENCE = re.compile(r"(`{3,}(?=[^`]*$)|~{3,})(.*)")
# Fences that share a line with something else are none to CommonMark; small models write them.
_OPENED_LATE = re.compile(r"[^`]+```(?:python|py)\s*")
_CLOSED_LATE = re.compile(r"(\s*[^\s`#'\"][^`]*)```\s*")
_BEGUN = re.compile(r"\[BEGIN\](.*?)(?:\[DONE\]|\Z)", re.DOTALL)  # as MBPP's own prompts have it


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """What a completion is to be judged by.

    Attributes:
      strict: it stood in one fenced block of Python, as was asked for.
      digest: the same for programs that differ in spaces and comments alone.
    """

    source: str
    strict: bool
    digest: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Block:
    label: str
    text: str
    closed: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """A block, or the whole completion, that is Python; `goes_on`: as the end of the header."""

    text: str
    goes_on: bool
    binds: set[str]
    uses: set[str]


def find_program(completion: str, names: Iterable[str] = (), header: str = "") -> Program | str:
    """The last fenced block that holds code, or the whole completion if it has no block and is Python; or why none.

    Where the block lacks something that other blocks define, those belong to the program too.

    Args:
      names: what is going to be called; a block that defines one of them goes before a later one that does not, such as
        an example of its use.
      header: the beginning of the program, which the completion defines again or goes on from.
    """
    if len(completion) > LONGEST_COMPLETION:
        return "too long"
    completion = conclusion(completion, _CLOSED)
    blocks = list(_fenced_blocks(completion)) or [_Block("", text, False) for text in _BEGUN.findall(completion)]
    wanted = set(names)
    texts = [block.text for block in blocks] or [completion]
    parts = [part for part in (_part(text, wanted, header) for text in texts) if part is not None]
    if not parts:
        return "syntax error" if blocks else "no code"
    source = _source(_needed(parts, wanted, header), header)
    tree = parse(source)
    try:
        plain = ast.unparse(tree) if tree else None
    except RecursionError:
        plain = None
    if plain is None:
        return "syntax error"
    strict = len(blocks) == 1 and blocks[0].label == "python" and blocks[0].closed
    return Program(source, strict, hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()[:16])


def parse(source: str) -> ast.Module | None:
    """The syntax tree; None where the text is not Python, or is nested too deeply for a parser."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "\\d", and whatever else a model writes that is Python all the same
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def asked_names(tests: Iterable[str]) -> tuple[set[str], set[str]]:
    """What tests use and neither define nor have from Python: what a program has to define, and modules to import.

    A module is a name of the standard library's of which an attribute is taken, as in math.isclose(f(2), 0.5): it is
    the tests' to import, or a program could bring a math of its own.
    """
    nodes = [node for source in tests for node in ast.walk(parse(source) or ast.Module([], []))]
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    used -= set().union(set(dir(builtins)), *map(_bound, nodes))
    bases = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    modules = used & bases & sys.stdlib_module_names
    return used - modules, modules


def bound_names(tree: ast.AST) -> set[str]:
    """Every name that is given a value, in whatever scope."""
    return set().union(*map(_bound, ast.walk(tree)))


def _bound(node: ast.AST) -> set[str]:
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
            return {name}
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {(alias.asname or alias.name).partition(".")[0] for alias in names}
    return set()


def _fenced_blocks(text: str) -> Iterator[_Block]:
    """The blocks between ``` or ~~~ lines, as CommonMark has them; the last one may be cut off before its end.

    Only ``` tells a label: what stands between other fences, or a fence that shares its line, is read, and is not what
    was asked for.
    """
    fence, label = "", ""
    lines: list[str] = []
    for line in text.splitlines():
        match = _FENCE.fullmatch(line.strip())
        if not fence and match:
            fence, lines = match[1], []
            label = match[2].strip().lower() if fence == "```" else ""
        elif fence and match and not match[2] and match[1].startswith(fence):
            yield _Block(label, "\n".join(lines) + "\n", closed=True)
            fence = ""
        elif not fence and _OPENED_LATE.fullmatch(line):
            fence, lines, label = "```", [], ""
        elif fence == "```" and (late := _CLOSED_LATE.fullmatch(line)):
            yield _Block(label, "\n".join([*lines, late[1]]) + "\n", closed=False)
            fence = ""
        elif fence:
            lines.append(line)
    if fence:
        yield _Block(label, "\n".join(lines) + "\n", closed=False)


def _part(text: str, names: set[str], header: str) -> _Part | None:
    """A text as part of a program; None where it is no Python."""
    whole = text if parse(text) else textwrap.dedent(text)  # indented with the list that it stands in
    tree = parse(whole)
    body = _body(text) if header and (tree is None or not names & bound_names(tree)) else ""
    if body.strip():
        whole, tree = body, parse(header + body)
    if tree is None or not any(map(_does_something, tree.body)):
        return None
    uses = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    binds = set().union(*(_bound(node) for node in ast.walk(tree) if not _is_import_from_elsewhere(node)))
    return _Part(whole, bool(body.strip()), binds, uses)


def _is_import_from_elsewhere(node: ast.AST) -> bool:
    """Whether it imports what Python does not have: "from solution import f" in an example of a program's use."""
    match node:
        case ast.ImportFrom(module=str(module)):
            return module.partition(".")[0] not in sys.stdlib_module_names
        case ast.Import(names=names):
            return any(alias.name.partition(".")[0] not in sys.stdlib_module_names for alias in names)
    return False


def _needed(parts: Sequence[_Part], names: set[str], header: str) -> list[_Part]:
    """The last part that defines one of the names, or else the last; and those that define what is missing then."""
    chosen = {max(range(len(parts)), key=lambda place: (bool(names & parts[place].binds), place))}
    there = (set(dir(builtins)) | bound_names(parse(header) or ast.Module([], []))) - names
    while True:
        of_chosen = [parts[place] for place in chosen]
        missing = names.union(*(part.uses for part in of_chosen)) - there.union(*(part.binds for part in of_chosen))
        more = {place for place, part in enumerate(parts) if missing & part.binds} - chosen
        if not more:
            return [parts[place] for place in sorted(chosen)]
        chosen |= more


def _source(parts: Sequence[_Part], header: str) -> str:
    """The parts as one program.

    The header's imports and helpers are there for a program that defines its function again too.
    """
    going_on = "".join([part.text for part in parts if part.goes_on][-1:])
    return "\n".join(text for text in (header + going_on, *(part.text for part in parts if not part.goes_on)) if text)


def _body(text: str) -> str:
    """The lines that go on with a function: up to the first that is not indented."""
    kept: list[str] = []
    for line in text.splitlines():
        if line.strip() and not line[0].isspace():
            break
        kept.append(line)
    return "\n".join(kept) + "\n"


def _does_something(statement: ast.stmt) -> bool:
    """False for a bare word or number, as which plain prose may parse."""
    return not isinstance(statement, ast.Expr) or isinstance(statement.value, ast.Call | ast.Await)
