"""Runs inside the sandbox around a model's program; sandbox.py starts it.

sandbox.py passes this file to Python as text, so that no project file is visible in the sandbox: it must stay
self-contained. It imports only modules that Python loads anyway, so that it starts in milliseconds. It has three roles:

  script   runs a program that reads standard input and writes standard output;
  program  runs a program, then calls its functions on behalf of the tests in the other process;
  tests    runs tests that call the program's functions by name through the other process.

The tests and their expected values are thus never in the process of the model's program. The two exchange plain values
(numbers, strings, lists, dates, ...). Each is copied as its base type, so a subclass with overridden methods arrives
as the plain type. Any other object stays in the program's process, and the tests hold a Remote to it.
"""

import builtins
import os
import resource
import sys

TYPE_CHECKING = False  # importing typing would double the start-up time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

# Exit statuses, chosen apart from those Python and the system use.
OUT_OF_MEMORY, PASSED, FAILED, RAISED, MISSING, UNUSABLE, ENDED = range(80, 87)

MAX_MESSAGE_BYTES = 2**24
MAX_ITERATOR_ITEMS = 100_000


class UnsendableError(TypeError):
    """The tests passed the program a value that cannot be copied."""


class ProgramError(Exception):
    """The program raised an exception; instances also inherit from the builtin exception it is based on."""

    def __init__(self, *arguments: "Any"):
        """Accepts any arguments, whatever the builtin exception requires."""


def make_program_error(name: str, arguments: "tuple[Any, ...]") -> ProgramError:
    """Recreates the program's exception in the tests' process, so that tests can expect a ValueError."""
    # StopIteration would end `all` and `map` without an error, and the test would pass.
    base = Exception if name.startswith("Stop") else getattr(builtins, name)
    return type(name, (ProgramError, base), {})(*arguments)


# Message format: each value is a letter, a count, ":", then that many bytes or that many values.


def dump(value: "Any", keep: "Callable[[Any], int]") -> bytes:
    """Serialises a value.

    Args:
      keep: returns a handle for a value that is not plain.
    """
    if value is None or isinstance(value, bool):
        return _dump_bytes("v", repr(value).encode())
    if isinstance(value, int):
        return _dump_bytes("i", hex(value).encode())
    if isinstance(value, float):
        return _dump_bytes("g", float.hex(value).encode())
    if isinstance(value, complex):
        return _dump_bytes("j", f"{value.real.hex()} {value.imag.hex()}".encode())
    if isinstance(value, str):
        return _dump_bytes("s", str.encode(value, "utf-8", "surrogatepass"))
    if isinstance(value, bytes | bytearray):
        return _dump_bytes("b" if isinstance(value, bytes) else "y", bytes(value))
    for letter, kind in _CONTAINERS.items():
        if isinstance(value, kind):
            return _dump_values(letter, [dump(item, keep) for item in kind.__iter__(value)])
    if isinstance(value, dict):
        return _dump_values("d", [dump(item, keep) for pair in dict.items(value) for item in pair])
    if isinstance(value, range):
        return _dump_values("r", [dump(item, keep) for item in (value.start, value.stop, value.step)])
    for name, (module, _, fields) in _LIBRARY_TYPES.items():
        if isinstance(value, getattr(sys.modules.get(module), name, ())):  # an unimported module has no instances
            return _dump_values("m", [dump(field, keep) for field in (name, *fields(value))])
    if hasattr(type(value), "__next__") or isinstance(value, _VIEWS):
        items = [item for item, _ in zip(value, range(MAX_ITERATOR_ITEMS + 1), strict=False)]
        if len(items) > MAX_ITERATOR_ITEMS:
            raise ValueError(f"iterator with more than {MAX_ITERATOR_ITEMS} items")
        return _dump_values("n", [dump(item, keep) for item in items])
    return _dump_bytes("o", hex(keep(value)).encode())


_CONTAINERS = {"l": list, "t": tuple, "e": set, "z": frozenset}
# Standard library types: module, constructor, fields. datetime precedes date, its base class.
_LIBRARY_TYPES: "dict[str, tuple[str, Callable[..., Any], Callable[..., tuple[Any, ...]]]]" = {
    "deque": ("collections", lambda module: module.deque, lambda value: (list(value), value.maxlen)),
    "Fraction": ("fractions", lambda module: module.Fraction, lambda value: (value.numerator, value.denominator)),
    "Decimal": ("decimal", lambda module: module.Decimal, lambda value: (str(value),)),
    "datetime": ("datetime", lambda module: module.datetime.fromisoformat, lambda value: (value.isoformat(),)),
    "date": ("datetime", lambda module: module.date.fromisoformat, lambda value: (value.isoformat(),)),
}
_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))


def _dump_bytes(letter: str, content: bytes) -> bytes:
    return b"%b%d:%b" % (letter.encode(), len(content), content)


def _dump_values(letter: str, dumped: list[bytes]) -> bytes:
    return b"%b%d:%b" % (letter.encode(), len(dumped), b"".join(dumped))


def load(message: bytes, find: "Callable[[int], Any]") -> "Any":
    """Deserialises a value.

    Args:
      find: returns the value for a handle.

    Raises:
      Exception: of any type, if the message is malformed.
    """
    value, end = _load(message, 0, find)
    if end != len(message):
        raise ValueError("bytes after the value")
    return value


def _load(message: bytes, start: int, find: "Callable[[int], Any]") -> "tuple[Any, int]":
    """Reads the value at `start`; returns it and the position after it."""
    letter = chr(message[start])
    colon = message.index(b":", start, start + 20)
    count = int(message[start + 1 : colon])
    if count < 0:
        raise ValueError("negative count")
    end = colon + 1
    if letter not in "ltezdrnm":
        content, end = message[end : end + count], end + count
        return find(int(content, 16)) if letter == "o" else _LOADERS[letter](content), end
    values = []
    for _ in range(count):
        value, end = _load(message, end, find)
        values.append(value)
    if letter == "d":
        return dict(zip(values[::2], values[1::2], strict=True)), end
    if letter == "r":
        return range(*values), end
    if letter == "m":
        module, constructor, _ = _LIBRARY_TYPES[values[0]]
        return constructor(__import__(module))(*values[1:]), end
    return iter(values) if letter == "n" else _CONTAINERS[letter](values), end


_LOADERS: "dict[str, Callable[[bytes], Any]]" = {
    **{"b": bytes, "y": bytearray},
    "s": lambda content: content.decode("utf-8", "surrogatepass"),
    "v": {b"None": None, b"True": True, b"False": False}.__getitem__,
    "i": lambda content: int(content, 16),
    "g": lambda content: float.fromhex(content.decode("ascii")),
    "j": lambda content: complex(*map(float.fromhex, content.decode("ascii").split(" "))),
}


def send(pipe: int, message: bytes) -> None:
    """Sends a message.

    Raises:
      OSError: the other end is closed.
    """
    unsent = memoryview(len(message).to_bytes(8, "big") + message)
    while unsent:
        unsent = unsent[os.write(pipe, unsent) :]


def receive(pipe: int) -> bytes:
    """Receives the next message.

    Raises:
      EOFError: the other end is closed.
      ValueError: the message exceeds MAX_MESSAGE_BYTES.
    """
    length = int.from_bytes(_read(pipe, 8), "big")
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"message of {length} bytes")
    return _read(pipe, length)


def _read(pipe: int, count: int) -> bytes:
    content = bytearray()
    while len(content) < count:
        received = os.read(pipe, count - len(content))
        if not received:
            raise EOFError
        content += received
    return bytes(content)


# The three roles.


def new_module(name: str) -> "dict[str, Any]":
    """Registers an empty module and returns its namespace."""
    module = type(sys)(name)
    sys.modules[name] = module
    return module.__dict__


def run_script(source: str) -> None:
    """Runs a program as `python program.py` would."""
    try:
        exec(compile(source, "program.py", "exec"), new_module("__main__"))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def serve_program(source: str, pipe: int) -> "NoReturn":
    """Runs a program, then answers the tests' requests."""
    names: dict[str, Any] = {}
    objects: list[Any] = []

    def keep(value: "Any") -> int:
        objects.append(value)
        return len(objects) - 1

    def answer(verb: str, *arguments: "Any") -> "Any":
        if verb == "name":
            return (arguments[0] in names, names.get(arguments[0]))
        if verb == "call":
            function, positional, keywords = arguments
            return function(*positional, **keywords)
        return _VERBS[verb](*arguments)

    try:
        names = new_module("program")
        exec(compile(source, "program.py", "exec"), names)
        while True:
            request = load(receive(pipe), objects.__getitem__)
            try:
                reply = dump((True, answer(*request)), keep)
            except MemoryError:
                raise
            except BaseException as error:  # SystemExit too: the tests must learn that the call failed
                name = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
                reply = dump((False, (name, error.args)), keep)
            send(pipe, reply)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except SystemExit:
        os._exit(0)
    except BaseException:
        os._exit(1)


_CONVERSIONS = {"len": len, "iter": iter, "str": str, "repr": repr, "int": int, "float": float}
_VERBS = {"get": getattr, "set": setattr, "getitem": lambda value, key: value[key], **_CONVERSIONS}


class Remote:
    """The tests' reference to an object in the program's process that is not a plain value.

    It supports calls, attributes, items and conversions to plain values (len, list, ...), but no comparison or
    arithmetic: the program's object could claim to equal everything. A Remote equals only itself; bool() of it raises.
    """

    __slots__ = ("_ask", "_handle")

    def __init__(self, ask: "Callable[..., Any]", handle: int):
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_handle", handle)

    def __call__(self, *positional: "Any", **keywords: "Any") -> "Any":
        return self._ask("call", self, positional, keywords)

    def __getattr__(self, name: str) -> "Any":
        if name.startswith("__"):  # Python's own protocols must see a plain object
            raise AttributeError(name)
        return self._ask("get", self, name)

    def __setattr__(self, name: str, value: "Any") -> None:
        self._ask("set", self, name, value)

    def __bool__(self) -> bool:
        raise TypeError("an object of the program has no truth value")


class Placeholder(Remote):
    """Stands in for any value a program could return in a dry run; every operation on it succeeds."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_OTHER_OPERATORS = ("eq", "ne", "lt", "le", "gt", "ge", "contains", "neg", "pos", "abs", "invert", "round")
for _name in ("getitem", *_CONVERSIONS):
    setattr(Remote, f"__{_name}__", lambda self, *rest, verb=_name: self._ask(verb, self, *rest))
for _name in (*_BINARY, *(f"r{name}" for name in _BINARY), *_OTHER_OPERATORS):
    setattr(Placeholder, f"__{_name}__", lambda self, *_: self)


def _dry_run_reply(verb: str, placeholder: Placeholder) -> "Any":
    """Answers a request of the tests in a dry run."""
    match verb:
        case "name":
            return True, placeholder
        case "iter":
            return iter([placeholder])
    convert = _CONVERSIONS.get(verb)
    return convert("0") if convert else placeholder  # every conversion accepts "0"


def run_tests(suite: "dict[str, Any]", pipe: int) -> int:
    """Runs the tests against the program at the other end of the pipe, and returns the exit status.

    A dry run has no program. It only finds out whether the tests are UNUSABLE, whatever the program.
    """

    def handle(value: "Any") -> int:
        if isinstance(value, Remote):
            return value._handle
        raise UnsendableError(type(value).__name__)

    def ask(*request: "Any") -> "Any":
        message = dump(request, handle)
        if suite["dry_run"]:
            return _dry_run_reply(request[0], Placeholder(ask, 0))
        send(pipe, message)
        try:
            succeeded, value = load(receive(pipe), lambda number: Remote(ask, number))
        except (EOFError, OSError):
            raise
        except Exception as error:
            raise ProgramError("malformed reply") from error
        if not succeeded:
            raise make_program_error(*value)
        return value

    try:
        names = new_module("tests")
        for source in suite["preamble"]:
            exec(source, names)
        for name in suite["names"]:
            exists, value = ask("name", name)
            names.pop(name, None)
            if exists:
                names[name] = value
            elif hasattr(builtins, name):  # the tests would call the builtin instead
                return MISSING
        for source in suite["tests"]:
            try:
                exec(source, names)
            except (UnsendableError, ImportError):
                raise
            except Exception:
                if not suite["dry_run"]:
                    raise
    except ProgramError:
        return RAISED
    except (EOFError, OSError):
        return ENDED
    except NameError:
        return MISSING
    except (UnsendableError, ImportError):
        return UNUSABLE
    except Exception:  # a failed assertion, or one that raises on the program's result
        return FAILED
    return PASSED


def set_limits(seconds: int, memory: int, output: int) -> None:
    """Limits the process: CPU seconds, bytes of address space and bytes of output."""
    limits = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),  # SIGXCPU, then SIGKILL
        resource.RLIMIT_FSIZE: (output, output),
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_CORE: (0, 0),
    }
    if sys.platform == "linux":  # macOS defines RLIMIT_AS but rejects it
        limits[resource.RLIMIT_AS] = (memory, memory)
    for kind, (soft, hard) in limits.items():
        _, current_hard = resource.getrlimit(kind)
        if current_hard != resource.RLIM_INFINITY:
            soft, hard = min(soft, current_hard), min(hard, current_hard)
        resource.setrlimit(kind, (soft, hard))


def watch(control: int) -> None:
    """Kills this process group when the process that started it exits."""
    os.read(control, 1)  # nothing is ever sent: it returns when the other end closes
    os.killpg(0, 9)


def main() -> None:
    role, seconds, memory, output, control, channel, watch_parent = sys.argv[1], *map(int, sys.argv[2:])
    sys.argv[:] = ["program.py"]
    set_limits(seconds, memory, output)
    os.write(control, b"+")  # ready: if we run under bubblewrap, its --die-with-parent is in force by now
    payload = load(receive(control), lambda handle: handle)
    if watch_parent:
        import _thread

        _thread.start_new_thread(watch, (control,))
    for name in ("exit", "quit"):  # normally added by the site module, which is off
        setattr(builtins, name, sys.exit)
    if role == "script":
        run_script(payload)
    elif role == "program":
        serve_program(payload, channel)
    else:
        os._exit(run_tests(payload, channel))


if __name__ == "__main__":
    main()
