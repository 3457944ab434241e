"""The program of the process that renders chat templates and tries out tokenizers; see process.py.

It runs as a script, and imports nothing of this package, so that it starts in a tenth of a second. Requests and answers
are JSON, one message each; nothing that this process sends is run or unpickled by the other side.
"""

import collections
import contextlib
import datetime
import functools
import json
import resource
import sys
from multiprocessing.connection import Connection
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
from tokenizers import Tokenizer

MEMORY_LIMIT = 2**32  # bytes of address space; the largest published tokenizers take a quarter of it
MAX_CHARACTERS = 2**24  # of a rendered text
MAX_TOKENIZERS = 4  # held in memory


def main(fd: int) -> None:
    """Answers requests until the other side is gone."""
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]))
    pipe = Connection(fd)
    tokenizers: collections.OrderedDict[str, Tokenizer] = collections.OrderedDict()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = json.loads(pipe.recv_bytes())
            pipe.send_bytes(json.dumps(answer(request, tokenizers)).encode())


def answer(request: dict[str, Any], tokenizers: collections.OrderedDict[str, Tokenizer]) -> dict[str, Any]:
    """The text of a request, rendered if it has a template, and encoded by a tokenizer if it names one.

    Returns:
      {"text"}; or {"error", "of"} and, from Jinja's parser, "line", where "of" is "template" or "tokenizer".
    """
    text = request.get("text", "")
    if "template" in request:
        try:
            text = render(request["template"], request["variables"])
        except MemoryError:
            return {"of": "template", "error": "needs too much memory"}
        except jinja2.TemplateSyntaxError as error:
            return {"of": "template", "error": error.message, "line": error.lineno}
        except jinja2.TemplateError as error:
            refuses = "refuses the conversation: " if type(error) is jinja2.TemplateError else ""  # by raise_exception
            return {"of": "template", "error": refuses + first_line(error)}
        except Exception as error:  # the expressions of a template can raise anything
            return {"of": "template", "error": f"{type(error).__name__}: {first_line(error)}"}
    path = request.get("tokenizer")
    if path is not None:
        try:
            if request.get("reload") or path not in tokenizers:
                tokenizers[path] = Tokenizer.from_file(path)
                while len(tokenizers) > MAX_TOKENIZERS:
                    tokenizers.popitem(last=False)
            tokenizer = tokenizers[path]
            tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the library is not an Exception
            is_panic = not isinstance(error, Exception)
            return {"of": "tokenizer", "error": first_line(error), "panic": is_panic}
    return {"text": text}


def render(template: Any, variables: dict[str, Any]) -> str:
    """The text of a template.

    Raises:
      MemoryError: it is longer than MAX_CHARACTERS.
      Exception: whatever the template's expressions raise.
    """
    pieces: list[str] = []
    num_characters = 0
    for piece in compiled(template).generate(variables):
        pieces.append(piece)
        num_characters += len(piece)
        if num_characters > MAX_CHARACTERS:
            raise MemoryError
    return "".join(pieces)


class GenerationTag(jinja2.ext.Extension):
    """{% generation %}: transformers marks with it what the model wrote; here it leaves the text as it is."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class Dict:
    """The global `dict` of templates: not the type itself, whose attributes lead out of the sandbox."""

    def __call__(self, *args: Any, **options: Any) -> dict[Any, Any]:
        return dict(*args, **options)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class Namespace(jinja2.utils.Namespace):
    """The global `namespace` of templates; a name with an underscore could lead out of the sandbox."""

    def __init__(*args: Any, **options: Any) -> None:
        self, *rest = args
        values = dict(*rest, **options)
        for name in values:
            check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(name)
        super().__setitem__(name, value)


def check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no names with an underscore, like {name!r:.80}")


@functools.lru_cache(maxsize=16)
def compiled(template: Any) -> jinja2.Template:
    """A template in an environment with all that transformers gives to templates (utils/chat_template_utils.py)."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    environment.globals |= {"dict": Dict(), "namespace": Namespace}
    return environment.from_string(template)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()[:200]


if __name__ == "__main__":
    main(int(sys.argv[1]))
