"""Finds the program in a completion. Programs are parsed here, never run."""

import ast
import builtins
import dataclasses
import hashlib
import re
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence

from tpt_jax.checks.answers.turns import end_of_turn, visible_text

MAX_COMPLETION_CHARACTERS = 100_000  # far above any real answer to these tasks; parsing is slow

_CLOSING_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[ \t]*$", re.MULTILINE)
_FENCE = re.compile(r"(`{3,}(?=[^`]*$)|~{3,})(.*)")
# CommonMark does not recognise a fence that shares its line with other text, but small models write them.
_INLINE_OPENING_FENCE = re.compile(r"[^`]+```(?:python|py)\s*")
_INLINE_CLOSING_FENCE = re.compile(r"(\s*[^\s`#'\"][^`]*)```\s*")
_BEGIN_DONE = re.compile(r"\[BEGIN\](.*?)(?:\[DONE\]|\Z)", re.DOTALL)  # the format of MBPP's published prompts


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """The program extracted from a completion.

    Attributes:
      strict: the completion has exactly one fenced block, labelled `python` and closed, as the prompt asks.
      checksum: of the syntax tree, so equal for programs that differ only in whitespace and comments.
    """

    source: str
    strict: bool
    checksum: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Block:
    label: str
    text: str
    is_closed: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Snippet:
    """A block, or a whole completion, that parses as Python.

    Attributes:
      is_body: it is the body of the function at the end of the header.
      defines: names it binds, in any scope.
      uses: names it mentions.
    """

    text: str
    is_body: bool
    defines: set[str]
    uses: set[str]


def find_program(
    completion: str, names: Iterable[str] = (), header: str = "", *, allow_trailing_text: bool = False
) -> Program | str:
    """Returns the program in a completion, or the verdict reason if there is none.

    The program is the last fenced block of code, plus earlier or later blocks that define names it is missing. A
    completion without blocks may itself be the program.

    Args:
      names: the names the tests call. A block that defines one of them wins over a later block that does not, for
        example a usage example.
      header: the start of the program, which the completion either repeats or continues.
      allow_trailing_text: text that is not Python may follow a program that continues the header. Otherwise there is
        no program, since a trace that is trained on would teach broken Python.
    """
    if len(completion) > MAX_COMPLETION_CHARACTERS:
        return "too long"
    completion = visible_text(completion)
    if fence := _CLOSING_FENCE.search(completion):
        completion = completion[: end_of_turn(completion, fence.end())]
    blocks = list(_fenced_blocks(completion)) or [_Block("", text, False) for text in _BEGIN_DONE.findall(completion)]
    required = set(names)
    texts = [block.text for block in blocks] or [completion]
    candidates = (_snippet(text, required, header, allow_trailing_text) for text in texts)
    snippets = [snippet for snippet in candidates if snippet is not None]
    if not snippets:
        return "syntax error" if blocks else "no code"
    source = _join(_select(snippets, required, header), header)
    tree = parse(source)
    try:
        normalised = ast.unparse(tree) if tree else None
    except RecursionError:
        normalised = None
    if normalised is None:
        return "syntax error"
    strict = len(blocks) == 1 and blocks[0].label == "python" and blocks[0].is_closed
    return Program(source, strict, hashlib.sha256(normalised.encode("utf-8", "surrogatepass")).hexdigest()[:16])


def parse(source: str) -> ast.Module | None:
    """Returns the syntax tree, or None if the text is not Python or is nested too deeply to parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # valid code may still warn, for example about the escape "\\d"
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def undefined_names(tests: Iterable[str]) -> tuple[set[str], set[str]]:
    """Returns the names that tests use but do not define: those the program must define, and modules to import.

    A module is a standard library name whose attribute is read, as in `math.isclose(f(2), 0.5)`. The tests import it
    themselves, or a program could supply a fake `math`.
    """
    nodes = [node for source in tests for node in ast.walk(parse(source) or ast.Module([], []))]
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    used -= set().union(set(dir(builtins)), *map(_bound_by, nodes))
    owners = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    modules = used & owners & sys.stdlib_module_names
    return used - modules, modules


def bound_names(tree: ast.AST) -> set[str]:
    """Returns every name bound in the tree, in any scope."""
    return set().union(*map(_bound_by, ast.walk(tree)))


def _bound_by(node: ast.AST) -> set[str]:
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
            return {name}
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {(alias.asname or alias.name).partition(".")[0] for alias in names}
    return set()


def _fenced_blocks(text: str) -> Iterator[_Block]:
    """Yields the blocks between CommonMark fences (``` or ~~~); the last block may be unclosed.

    Only a plain ``` fence on its own line yields a label. Blocks with other fences are still read, but the verdict on
    them is never strict.
    """
    fence, label = "", ""
    lines: list[str] = []
    for line in text.splitlines():
        match = _FENCE.fullmatch(line.strip())
        if not fence and match:
            fence, lines = match[1], []
            label = match[2].strip().lower() if fence == "```" else ""
        elif fence and match and not match[2] and match[1].startswith(fence):
            yield _Block(label, "\n".join(lines) + "\n", is_closed=True)
            fence = ""
        elif not fence and _INLINE_OPENING_FENCE.fullmatch(line):
            fence, lines, label = "```", [], ""
        elif fence == "```" and (closing := _INLINE_CLOSING_FENCE.fullmatch(line)):
            yield _Block(label, "\n".join([*lines, closing[1]]) + "\n", is_closed=False)
            fence = ""
        elif fence:
            lines.append(line)
    if fence:
        yield _Block(label, "\n".join(lines) + "\n", is_closed=False)


def _snippet(text: str, names: set[str], header: str, allow_trailing_text: bool) -> _Snippet | None:
    """Parses a text as a whole program, or as the body of the header's last function; None if it is neither."""
    code = text if parse(text) else textwrap.dedent(text)  # a block inside a list item is indented
    tree = parse(code)
    body = _leading_body(text, header) if header and (tree is None or not _defines(tree, names)) else ""
    is_body = bool(body.strip())
    if is_body:
        is_program = allow_trailing_text or parse(header + text) is not None
        code, tree = body, parse(header + body) if is_program else None
    if tree is None or not any(map(_has_effect, tree.body)):
        return None
    uses = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    defines = set().union(*(_bound_by(node) for node in ast.walk(tree) if not _is_third_party_import(node)))
    return _Snippet(code, is_body, defines, uses)


def _is_third_party_import(node: ast.AST) -> bool:
    """Whether it imports outside the standard library, like "from solution import f" in a usage example."""
    match node:
        case ast.ImportFrom(module=str(module)):
            return module.partition(".")[0] not in sys.stdlib_module_names
        case ast.Import(names=names):
            return any(alias.name.partition(".")[0] not in sys.stdlib_module_names for alias in names)
    return False


def _select(snippets: Sequence[_Snippet], names: set[str], header: str) -> list[_Snippet]:
    """Selects the last snippet that defines one of the names (or the last of all), and those it depends on."""
    selected = {max(range(len(snippets)), key=lambda index: (bool(names & snippets[index].defines), index))}
    predefined = (set(dir(builtins)) | bound_names(parse(header) or ast.Module([], []))) - names
    while True:
        used = names.union(*(snippets[index].uses for index in selected))
        missing = used - predefined.union(*(snippets[index].defines for index in selected))
        added = {index for index, snippet in enumerate(snippets) if missing & snippet.defines} - selected
        if not added:
            return [snippets[index] for index in sorted(selected)]
        selected |= added


def _join(snippets: Sequence[_Snippet], header: str) -> str:
    """Joins snippets into one program.

    The header comes first even if a snippet defines its function again, because the snippet may use its imports.
    """
    body = "".join([snippet.text for snippet in snippets if snippet.is_body][-1:])
    definitions = [snippet.text for snippet in snippets if not snippet.is_body]
    return "\n".join(text for text in (header + body, *definitions) if text)


def _defines(tree: ast.Module, names: set[str]) -> bool:
    """Whether a program defines one of the names, not as a local variable of a dedented body."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    if any(isinstance(node, functions) and node.name in names for node in tree.body):
        return True
    returns = any(isinstance(node, ast.Return) for node in _same_scope(tree))
    return not returns and bool(names & bound_names(tree))


def _same_scope(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree outside the functions and classes in it."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from _same_scope(node)


def _leading_body(text: str, header: str) -> str:
    """The rest of a function that the header starts: the lines before the first unindented one outside brackets."""
    body: list[str] = []
    for line in text.splitlines():
        starts_statement = line.strip() and not line[0].isspace()
        if starts_statement and (not body or parse(header + "\n".join(body) + "\n") is not None):
            break
        body.append(line)
    return "\n".join(body) + "\n"


def depends_on_hashes(source: str) -> bool:
    """Whether a program has sets or hashes, whose order or values the hash seed may decide."""
    nodes = ast.walk(parse(source) or ast.Module([], []))
    return any(
        isinstance(node, ast.Set | ast.SetComp)
        or (isinstance(node, ast.Name) and node.id in ("set", "frozenset", "hash"))
        for node in nodes
    )


def missing_modules(source: str) -> list[str]:
    """The modules outside the standard library that a program imports, by their top-level names."""
    tree = parse(source)
    nodes = ast.walk(tree) if tree else ()
    imported = [name for node in nodes if _is_third_party_import(node) for name in _imported_modules(node)]
    return sorted({name for name in imported if name not in sys.stdlib_module_names})


def _imported_modules(node: ast.AST) -> list[str]:
    match node:
        case ast.ImportFrom(module=str(module), level=0):
            return [module.partition(".")[0]]
        case ast.Import(names=names):
            return [alias.name.partition(".")[0] for alias in names]
    return []


def _has_effect(statement: ast.stmt) -> bool:
    """False for a bare expression such as a word or number: prose may parse as one."""
    return not isinstance(statement, ast.Expr) or isinstance(statement.value, ast.Call | ast.Await)
