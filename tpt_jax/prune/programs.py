"""The program in a completion. It is parsed and never run here."""

import ast
import builtins
import dataclasses
import hashlib
import sys
from collections.abc import Iterable, Iterator

LONGEST_COMPLETION = 100_000  # characters; nobody's answer to these tasks is longer, and parsing is not quick


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


def find_program(completion: str, names: Iterable[str] = (), header: str = "") -> Program | str:
    """The last fenced block that holds code, or the whole completion if it has no block and is Python; or why none.

    Args:
      names: what is going to be called; a block that defines one of them goes before a later one that does not, such as
        an example of its use.
      header: the beginning of the program, which the completion defines again or goes on from.
    """
    if len(completion) > LONGEST_COMPLETION:
        return "too long"
    blocks = list(_fenced_blocks(completion))
    wanted = set(names)
    found: list[tuple[str, ast.Module]] = []
    for text in [block.text for block in reversed(blocks)] or [completion]:
        program = _whole(text, wanted, header)
        if program is not None:
            found.append(program)
    if not found:
        return "syntax error" if blocks else "no code"
    source, tree = next((one for one in found if wanted & bound_names(_own(*one, header))), found[0])
    try:
        plain = ast.unparse(tree)
    except RecursionError:
        return "syntax error"
    strict = len(blocks) == 1 and blocks[0].label == "python" and blocks[0].closed
    return Program(source, strict, hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()[:16])


def parse(source: str) -> ast.Module | None:
    """The syntax tree; None where the text is not Python, or is nested too deeply for a parser."""
    try:
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
    used -= set().union(*map(_bound, nodes)) | set(dir(builtins))
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
    """The blocks between ``` lines; the last one may be cut off before its end."""
    label: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        fence = line.strip()
        if label is None and fence.startswith("```") and "`" not in fence[3:]:
            label, lines = fence[3:].strip().lower(), []
        elif label is not None and fence == "```":
            yield _Block(label, "\n".join(lines) + "\n", closed=True)
            label = None
        elif label is not None:
            lines.append(line)
    if label is not None:
        yield _Block(label, "\n".join(lines) + "\n", closed=False)


def _whole(text: str, names: set[str], header: str) -> tuple[str, ast.Module] | None:
    """A text as a program; None where it is none."""
    tree = parse(text)
    if header and (tree is None or not names & bound_names(tree)):
        text = _body(text)
        tree = parse(header + text) if text.strip() else None
        return (header + text, tree) if tree is not None else None
    if tree is None or not any(map(_does_something, tree.body)):
        return None
    # The header's imports and helpers are there for the program that defines its function again.
    source = f"{header}\n{text}" if header else text
    tree = parse(source)
    return (source, tree) if tree is not None else None


def _body(text: str) -> str:
    """The lines that go on with a function: up to the first that is not indented."""
    kept: list[str] = []
    for line in text.splitlines():
        if line.strip() and not line[0].isspace():
            break
        kept.append(line)
    return "\n".join(kept) + "\n"


def _own(source: str, tree: ast.Module, header: str) -> ast.AST:
    """What the completion itself brought."""
    own = parse(source.removeprefix(header)) if header else tree
    return own or tree


def _does_something(statement: ast.stmt) -> bool:
    """Not so a word or a number, of which an answer in plain language may consist."""
    return not isinstance(statement, ast.Expr) or isinstance(statement.value, ast.Call | ast.Await)
