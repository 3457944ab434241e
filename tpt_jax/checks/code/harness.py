"""What runs in the sandbox around a model's program: started by sandbox.py, never imported.

It is given to Python as text, so that nothing of the project lies in the sandbox, and it imports only what Python has
loaded in any case, so that it starts in milliseconds. It plays one of three parts:

  script   runs a program that reads standard input and writes standard output;
  program  runs a program, then calls its functions for the tests, which run in another process;
  tests    runs tests, for which the program's functions are names that are sent to the other process.

So the tests and the values that they expect are never where the model's program is. Between the two go plain values
(numbers, texts, lists, dates, ...), each copied and read as what it plainly is, whatever class the program made it of;
anything else stays where it is, and the tests hold a Remote for it.
"""

import builtins
import os
import resource
import sys

TYPE_CHECKING = False  # typing takes as long to import as Python to start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

# How the process ends, for sandbox.py: apart from what Python and the system use.
OUT_OF_MEMORY, PASSED, FAILED, RAISED, MISSING, UNUSABLE, ENDED = range(80, 87)

LONGEST_MESSAGE = 2**24  # bytes
LONGEST_ITERATOR = 100_000  # items


class UnpassableError(TypeError):
    """A value that the tests cannot hand to the program."""


class ProgramError(Exception):
    """The program raised something; where that was one of Python's own exceptions, this is one of that kind too."""

    def __init__(self, *arguments: "Any"):
        """Whatever arguments the other kind wants."""


def error_like(name: str, arguments: "tuple[Any, ...]") -> ProgramError:
    """What the tests see of an exception of the program's, so that they can expect a ValueError."""
    # The end of an iteration is no error to `all` and `map`: a test would stop there, and pass.
    kind = Exception if name.startswith("Stop") else getattr(builtins, name)
    return type(name, (ProgramError, kind), {})(*arguments)


# Messages: each value is a letter, a count, ":", and so many bytes, or so many values.


def dump(value: "Any", keep: "Callable[[Any], int]") -> bytes:
    """Writes a value.

    Args:
      keep: gives the handle of a value that is not plain.
    """
    if value is None or isinstance(value, bool):
        return _leaf("v", repr(value).encode())
    if isinstance(value, int):
        return _leaf("i", hex(value).encode())
    if isinstance(value, float):
        return _leaf("g", float.hex(value).encode())
    if isinstance(value, complex):
        return _leaf("j", f"{value.real.hex()} {value.imag.hex()}".encode())
    if isinstance(value, str):
        return _leaf("s", str.encode(value, "utf-8", "surrogatepass"))
    if isinstance(value, bytes | bytearray):
        return _leaf("b" if isinstance(value, bytes) else "y", bytes(value))
    for letter, kind in _CONTAINERS.items():
        if isinstance(value, kind):
            return _values(letter, [dump(item, keep) for item in kind.__iter__(value)])
    if isinstance(value, dict):
        return _values("d", [dump(item, keep) for pair in dict.items(value) for item in pair])
    if isinstance(value, range):
        return _values("r", [dump(item, keep) for item in (value.start, value.stop, value.step)])
    for name, (module, _, parts) in _MADE.items():
        if isinstance(value, getattr(sys.modules.get(module), name, ())):  # no values of what has not been imported
            return _values("m", [dump(part, keep) for part in (name, *parts(value))])
    if hasattr(type(value), "__next__") or isinstance(value, _VIEWS):
        items = [item for item, _ in zip(value, range(LONGEST_ITERATOR + 1), strict=False)]
        if len(items) > LONGEST_ITERATOR:
            raise ValueError("an iterator that does not end")
        return _values("n", [dump(item, keep) for item in items])
    return _leaf("o", hex(keep(value)).encode())


_CONTAINERS = {"l": list, "t": tuple, "e": set, "z": frozenset}
# Of the standard library: its module, how a value is made anew, and of what. A datetime is a date, and comes first.
_MADE: "dict[str, tuple[str, Callable[..., Any], Callable[..., tuple[Any, ...]]]]" = {
    "deque": ("collections", lambda module: module.deque, lambda value: (list(value), value.maxlen)),
    "Fraction": ("fractions", lambda module: module.Fraction, lambda value: (value.numerator, value.denominator)),
    "Decimal": ("decimal", lambda module: module.Decimal, lambda value: (str(value),)),
    "datetime": ("datetime", lambda module: module.datetime.fromisoformat, lambda value: (value.isoformat(),)),
    "date": ("datetime", lambda module: module.date.fromisoformat, lambda value: (value.isoformat(),)),
}
_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))


def _leaf(letter: str, content: bytes) -> bytes:
    return b"%b%d:%b" % (letter.encode(), len(content), content)


def _values(letter: str, values: list[bytes]) -> bytes:
    return b"%b%d:%b" % (letter.encode(), len(values), b"".join(values))


def load(message: bytes, find: "Callable[[int], Any]") -> "Any":
    """The value that was written.

    Args:
      find: gives what a handle stands for.

    Raises:
      Exception: of any kind, where the message is none.
    """
    value, end = _load(message, 0, find)
    if end != len(message):
        raise ValueError("more than a value")
    return value


def _load(message: bytes, start: int, find: "Callable[[int], Any]") -> "tuple[Any, int]":
    letter = chr(message[start])
    colon = message.index(b":", start, start + 20)
    count = int(message[start + 1 : colon])
    if count < 0:
        raise ValueError("a negative count")
    end = colon + 1
    if letter not in "ltezdrnm":
        content, end = message[end : end + count], end + count
        return find(int(content, 16)) if letter == "o" else _LEAVES[letter](content), end
    values = []
    for _ in range(count):
        value, end = _load(message, end, find)
        values.append(value)
    if letter == "d":
        return dict(zip(values[::2], values[1::2], strict=True)), end
    if letter == "r":
        return range(*values), end
    if letter == "m":
        module, make, _ = _MADE[values[0]]
        return make(__import__(module))(*values[1:]), end
    return iter(values) if letter == "n" else _CONTAINERS[letter](values), end


_LEAVES: "dict[str, Callable[[bytes], Any]]" = {
    **{"b": bytes, "y": bytearray},
    "s": lambda content: content.decode("utf-8", "surrogatepass"),
    "v": {b"None": None, b"True": True, b"False": False}.__getitem__,
    "i": lambda content: int(content, 16),
    "g": lambda content: float.fromhex(content.decode("ascii")),
    "j": lambda content: complex(*map(float.fromhex, content.decode("ascii").split(" "))),
}


def send(pipe: int, message: bytes) -> None:
    """Sends a message whole.

    Raises:
      OSError: the other end is gone.
    """
    rest = memoryview(len(message).to_bytes(8, "big") + message)
    while rest:
        rest = rest[os.write(pipe, rest) :]


def receive(pipe: int) -> bytes:
    """The next message.

    Raises:
      EOFError: the other end is gone.
      ValueError: the message is too long.
    """
    length = int.from_bytes(_read(pipe, 8), "big")
    if length > LONGEST_MESSAGE:
        raise ValueError("too long a message")
    return _read(pipe, length)


def _read(pipe: int, count: int) -> bytes:
    content = bytearray()
    while len(content) < count:
        part = os.read(pipe, count - len(content))
        if not part:
            raise EOFError
        content += part
    return bytes(content)


# The three parts.


def new_module(name: str) -> "dict[str, Any]":
    """The names of a module in which to run something."""
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
    """Runs a program, then does for the tests what they ask for."""
    names: dict[str, Any] = {}
    objects: list[Any] = []

    def keep(value: "Any") -> int:
        objects.append(value)
        return len(objects) - 1

    def answer(verb: str, *arguments: "Any") -> "Any":
        if verb == "name":
            return (arguments[0] in names, names.get(arguments[0]))
        if verb == "call":
            function, positional, named = arguments
            return function(*positional, **named)
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
            except BaseException as error:  # an exit too: the tests are to know
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
    """For the tests: something of the program's that is not a plain value.

    It is asked for plain values, as by len and list, and never to compare or to reckon: an object of the program's
    could be equal to everything. So it is equal to nothing but itself, and neither true nor false.
    """

    __slots__ = ("_ask", "_handle")

    def __init__(self, ask: "Callable[..., Any]", handle: int):
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_handle", handle)

    def __call__(self, *positional: "Any", **named: "Any") -> "Any":
        return self._ask("call", self, positional, named)

    def __getattr__(self, name: str) -> "Any":
        if name.startswith("__"):  # asked for by Python's own protocols, for which it is an object like any other
            raise AttributeError(name)
        return self._ask("get", self, name)

    def __setattr__(self, name: str, value: "Any") -> None:
        self._ask("set", self, name, value)

    def __bool__(self) -> bool:
        raise TypeError("neither true nor false")


class Anything(Remote):
    """Does for whatever a program could give, where tests are rehearsed without one."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


_TWO_SIDED = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_OTHERS = ("eq", "ne", "lt", "le", "gt", "ge", "contains", "neg", "pos", "abs", "invert", "round")
for _name in ("getitem", *_CONVERSIONS):
    setattr(Remote, f"__{_name}__", lambda self, *rest, verb=_name: self._ask(verb, self, *rest))
for _name in (*_TWO_SIDED, *(f"r{name}" for name in _TWO_SIDED), *_OTHERS):
    setattr(Anything, f"__{_name}__", lambda self, *_: self)


def _rehearsed(verb: str, anything: Anything) -> "Any":
    """What a rehearsal replies to a request of the tests."""
    match verb:
        case "name":
            return True, anything
        case "iter":
            return iter([anything])
    convert = _CONVERSIONS.get(verb)
    return convert("0") if convert else anything  # "0" is what every conversion takes


def run_tests(given: "dict[str, Any]", pipe: int) -> int:
    """Runs the tests against the program at the other end, and says how the process is to end.

    A rehearsal is without a program, and tells only whether the tests are UNUSABLE, whatever program comes.
    """

    def handle(value: "Any") -> int:
        if isinstance(value, Remote):
            return value._handle
        raise UnpassableError(type(value).__name__)

    def ask(*request: "Any") -> "Any":
        message = dump(request, handle)
        if given["rehearsal"]:
            return _rehearsed(request[0], Anything(ask, 0))
        send(pipe, message)
        try:
            done, value = load(receive(pipe), lambda number: Remote(ask, number))
        except (EOFError, OSError):
            raise
        except Exception as error:
            raise ProgramError("not a reply") from error
        if not done:
            raise error_like(*value)
        return value

    try:
        names = new_module("tests")
        for source in given["before"]:
            exec(source, names)
        for name in given["names"]:
            there, value = ask("name", name)
            names.pop(name, None)
            if there:
                names[name] = value
            elif hasattr(builtins, name):  # or the tests would go on with Python's own
                return MISSING
        for source in given["tests"]:
            try:
                exec(source, names)
            except (UnpassableError, ImportError):
                raise
            except Exception:
                if not given["rehearsal"]:
                    raise
    except ProgramError:
        return RAISED
    except (EOFError, OSError):
        return ENDED
    except NameError:
        return MISSING
    except (UnpassableError, ImportError):
        return UNUSABLE
    except Exception:  # a failed assertion, or one that cannot even be made of what the program returned
        return FAILED
    return PASSED


def set_limits(seconds: int, memory: int, output: int) -> None:
    """From here on the process has so many seconds of a processor, and so many bytes of memory and of output."""
    wanted = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),  # the first is a signal, the second the end
        resource.RLIMIT_FSIZE: (output, output),
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_CORE: (0, 0),
    }
    if sys.platform == "linux":  # macOS knows the name, and refuses it
        wanted[resource.RLIMIT_AS] = (memory, memory)
    for kind, (low, high) in wanted.items():
        _, most = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:
            low, high = min(low, most), min(high, most)
        resource.setrlimit(kind, (low, high))


def watch(control: int) -> None:
    """Ends this process and its children when the one that started it is gone."""
    os.read(control, 1)  # nothing is ever sent
    os.killpg(0, 9)


def main() -> None:
    part, seconds, memory, output, control, channel, watched = sys.argv[1], *map(int, sys.argv[2:])
    sys.argv[:] = ["program.py"]
    set_limits(seconds, memory, output)
    os.write(control, b"+")  # bubblewrap has tied us to its parent's life by now, so that the program may come
    given = load(receive(control), lambda handle: handle)
    if watched:
        import _thread

        _thread.start_new_thread(watch, (control,))
    for name in ("exit", "quit"):  # of Python's site module, which is not there
        setattr(builtins, name, sys.exit)
    if part == "script":
        run_script(given)
    elif part == "program":
        serve_program(given, channel)
    else:
        os._exit(run_tests(given, channel))


if __name__ == "__main__":
    main()
