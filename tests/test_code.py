"""The code checker: finds programs in completions and judges them by tests."""

from typing import Any

import pytest
from code_checker import check
from hypothesis import given
from hypothesis import strategies as st

from tpt_jax.checks.code import harness, sandbox
from tpt_jax.checks.code.check import check_code, outputs_match
from tpt_jax.checks.code.extract import MAX_COMPLETION_CHARACTERS, Program, find_program, undefined_names
from tpt_jax.checks.pool import CheckerPool
from tpt_jax.errors import MachineError
from tpt_jax.records import Question, Trace, Verdict


def judge(program: str, *tests: str, **data: Any) -> Verdict:
    return check(Question("q", "?", "", {"tests": tests, **data}), f"```python\n{program}\n```")


# Extraction.


@pytest.mark.parametrize(
    ("completion", "source", "strict"),
    [
        ("So:\n```python\ndef f(): return 1\n```\n", "def f(): return 1\n", True),
        ("```py\ndef f(): return 1\n```", "def f(): return 1\n", False),
        ("```\ndef f(): return 1\n```", "def f(): return 1\n", False),
        ("```python\ndef f(): return 1\n", "def f(): return 1\n", False),  # cut off
        ("def f(): return 1\n", "def f(): return 1\n", False),
        ("```python\ndef f(): return 1\n```\nor\n```python\ndef f(): return 2\n```", "def f(): return 2\n", False),
        ("```python\ndef f(): return 1\n```\nas in\n```python\nprint(f())\n```", "def f(): return 1\n", False),
        ("```python\ndef f(): return 1\n```\nsays\n```\n1 and no more\n```", "def f(): return 1\n", False),
        ("```python\ndef f( return 1\n```", "syntax error", False),
        ("I do not know.", "no code", False),
        ("42", "no code", False),
        ("", "no code", False),
        ("```python\n```", "syntax error", False),
        ("```python\nf = '\0'\n```", "syntax error", False),
        ("```python\nf = " + "(" * 5000 + ")" * 5000 + "\n```", "syntax error", False),
        ("```python\nf = " + "-" * 50_000 + "1\n```", "syntax error", False),
        ("x" * (MAX_COMPLETION_CHARACTERS + 1), "too long", False),
        ("1. Do:\n   ```python\n   def f(): return 1\n   ```", "def f(): return 1\n", True),
        ("````python\ndef f(): return '```'\n````", "def f(): return '```'\n", False),
        (
            "<think>\n```python\ndef f(): return 2\n```\n</think>\n```python\ndef f(): return 1\n```",
            "def f(): return 1\n",
            True,
        ),
        (
            "```python\ndef f(): return 1\n```\n\nQuestion: 2?\n```python\ndef f(): return 2\n```",
            "def f(): return 1\n",
            True,
        ),
        ("~~~python\ndef f(): return 1\n~~~", "def f(): return 1\n", False),
        (
            "```python\ndef g(): return 1\n```\n```python\ndef f(): return g()\n```\n```\nf()\n```",
            "def g(): return 1\n\ndef f(): return g()\n",
            False,
        ),
        (
            "```python\ndef f(): return g()\n```\nwhere\n```python\ndef g(): return h\n```\n```python\nh = 1\n```",
            "def f(): return g()\n\ndef g(): return h\n\nh = 1\n",
            False,
        ),
        (
            "```python\ndef f(): return 1\ndef g(): return 1\n```\nno:\n```python\ndef f(): return 2\n```",
            "def f(): return 2\n",
            False,
        ),
    ],
)
def test_find_program(completion: str, source: str, strict: bool) -> None:
    found = find_program(completion, ["f"])
    if isinstance(found, Program):
        assert (found.source, found.strict) == (source, strict)
    else:
        assert found == source


HEADER = 'import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef f(x):\n    """Twice the half."""\n'


@pytest.mark.parametrize(
    "completion",
    [
        "    return half(x) * 2\n",
        "    return half(x) * 2\n\nprint(f(2))\n",
        "    f = [\nhalf(x),\n    ]\n    return f[0] * 2\n",  # a local with its name, and a line at the margin
        "```python\n    return half(x) * 2\n```",
        "```python\ndef f(x):\n    return math.floor(half(x) * 2)\n```",
        f"Here:\n```python\n{HEADER}    return half(x) * 2\n```\n```python\nprint(f(2))\n```",
        "```python\n    return half(x) * two\n```\n```python\ntwo = 0 + 1 * 2\n```",
        "- So:\n  ```python\n  def f(x):\n      return math.floor(half(x) * 2)\n  ```",
    ],
)
def test_completion_may_continue_or_repeat_the_header(completion: str) -> None:
    data = {"prompt": HEADER, "entry_point": "f", "setup": "def check(candidate):\n    assert candidate(3) == 3"}
    assert check(Question("q", "?", "", {**data, "tests": ["check(f)"]}), completion).correct
    wrong = completion.replace("* 2", "* 3")
    assert check(Question("q", "?", "", {**data, "tests": ["check(f)"]}), wrong).reason == "failed test"


def test_text_that_is_not_python_may_follow_only_if_the_task_allows_it() -> None:
    data = {"prompt": HEADER, "entry_point": "f", "tests": ["assert f(3) == 3"]}
    completion = "    return half(x) * 2\n\nand so on"
    assert check(Question("q", "?", "", data), completion).reason == "no code"
    assert check(Question("q", "?", "", {**data, "allow_trailing_text": True}), completion).correct


def test_a_module_that_the_sandbox_lacks_is_named() -> None:
    program = "import numpy as np\ndef f(x): return np.no_such_function(x)"
    reason = "imports numpy, which the sandbox does not have" if check is check_code else "error"
    assert judge(program, "assert f(2) == 2").reason == reason
    assert judge("import os.path\ndef f(x): return y", "assert f(2) == 2").reason == "error"


def test_a_program_that_the_order_of_a_set_makes_right_is_wrong() -> None:
    by_chance = "def f(text): return max(set(text), key=text.count)"  # of two letters, whichever comes first
    tests = [f"assert f('ab') == {letter!r}" for letter in "ab"]
    assert not any(judge(by_chance, test).correct for test in tests)
    assert {judge(by_chance, test).reason for test in tests} == {"failed test", BY_CHANCE}
    assert judge("def f(text): return len(set(text))", "assert f('ab') == 2").correct


def test_checksum_ignores_whitespace_and_comments() -> None:
    programs = ("def f(): return 1", "def f():  # one\n  return (1)", "def f(): return 2")
    first, reformatted, other = (judge(program, "assert f() == 1").extracted for program in programs)
    assert first == reformatted != other


def test_undefined_names() -> None:
    tests = ["import re\nassert math.isclose(f(Pair(1, 2)), len(re.sub('a', '', 'b')))", "x = 3\nassert g(x) == x"]
    assert undefined_names(tests) == ({"f", "g", "Pair"}, {"math"})


# Verdicts.

BY_CHANCE = "right by chance: the order of a set decides"
RIGHT = "def f(x): return x + 1"


@pytest.mark.parametrize(
    ("program", "test", "reason"),
    [
        (RIGHT, "assert f(2) == 3", ""),
        (RIGHT, "assert f(2) == 4", "failed test"),
        (RIGHT, "assert g(2) == 3", "function not defined"),
        (RIGHT, "assert f('x') == 3", "error"),
        ("def f(x): return None", "assert f(2) > 1", "failed test"),
        ("def f(x): return 1 / 0", "assert f(2) == 3", "error"),
        ("raise ValueError", "assert f(2) == 3", "error"),
        ("def f(x): return [0] * 10**10", "assert f(2) == 3", "memory limit"),
        ("def f(x): return 'x' * 2**25", "assert f(2) == 3", "error"),  # the reply exceeds the message limit
        ("import itertools\ndef f(x): return itertools.count()", "assert list(f(2)) == 3", "error"),
        ("def f(x): return f(x)", "assert f(2) == 3", "error"),
        ("def f(x): return object()", "assert f(2)", "failed test"),
        ("def f(x): raise OSError", "assert f(2) == 3", "error"),
        ("def f(x): raise ImportError", "assert f(2) == 3", "error"),
        ("def f(x): raise StopIteration", "assert list(map(f, [1])) == []", "error"),
        ("def f(x): return 0", "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass", "failed test"),
        (RIGHT, "assert math.isclose(f(0.1), 1.1)", ""),
        ("def f(x): return math.floor(x)", "assert math.isclose(f(0.1), 0)", "error"),
    ],
)
def test_verdict_reasons(program: str, test: str, reason: str) -> None:
    verdict = judge(program, test)
    assert (verdict.reason, verdict.correct, verdict.strict) == (reason, not reason, not reason)


@pytest.mark.parametrize(
    "completion",
    [
        f"```python\n{RIGHT}\n```\nUse it so:\n```python\nfrom solution import f\nprint(f(2))\n```",
        f"Solution:```python\n{RIGHT}\n```",
        f"```python\n{RIGHT}```",
        f"[BEGIN]\n{RIGHT}\n[DONE]\nThat is it.",
        f"```python\nquit = exit\n{RIGHT}\nif f(1) != 2: exit()\n```",
    ],
)
def test_formats_of_small_models_are_accepted(completion: str) -> None:
    verdict = check(Question("q", "?", "", {"tests": ["assert f(2) == 3"]}), completion)
    assert (verdict.correct, verdict.reason) == (True, "")


@pytest.mark.parametrize("call", ["exit()", "quit()", "exit(0)", "import sys; sys.exit()"])
def test_script_may_exit_early(call: str) -> None:
    question = Question("q", "?", "", {"inputs": ["1"], "outputs": ["1"]})
    assert check(question, f"```python\nprint(input())\n{call}\nprint(2)\n```").correct


def test_program_with_syntax_warning_is_accepted() -> None:
    assert judge("import re\ndef f(x): return len(re.findall('\\d', x))", "assert f('a12') == 2").correct


def test_entry_point_may_shadow_a_builtin() -> None:
    program, test = "def sum(a, b): return a + b", "assert sum(2, 1) == 3"
    assert not judge(program, test).correct
    assert judge(program, test, entry_point="sum").correct


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(): return [1, (2, {3: {4}}), None, True, 1.5, 'x', b'y', 2j, range(3), 10**5000]",
         "assert f() == [1, (2, {3: {4}}), None, True, 1.5, 'x', b'y', 2j, range(3), 10**5000]"),
        ("import collections\ndef f(): return collections.Counter('aab')", "assert f() == {'a': 2, 'b': 1}"),
        ("def f():\n    yield 1\n    yield 2", "assert list(f()) == [1, 2]"),
        ("def f(): return (x for x in [])", "assert f() != []"),
        ("class Node:\n    def __init__(self, n): self.n, self.next = n, None\ndef f(a): return a.n + a.next.n",
         "a = Node(1)\na.next = Node(2)\nassert f(a) == 3 and a.next.n == 2"),
        ("def f(x): return lambda y: x + y", "assert f(1)(2) == 3"),
        ("def f(x): return x * 2", "assert list(map(f, [1, 2])) == [2, 4]"),
        ("def f(*a, **k): return [a, k]", "assert f(1, b=2) == [(1,), {'b': 2}]"),
        ("def f(): return float('nan')", "assert f() != f()"),
        ("f = '\\udcff'", "assert f == '\\udcff'"),
        ("from collections import deque\ndef f(): return deque([1, 2], 3)",
         "import collections\nassert f() == collections.deque([1, 2]) and list(f()) == [1, 2] and f() != [1, 2]"),
        ("import datetime as d\ndef f(): return [d.date(2020, 1, 2), d.datetime(2020, 1, 2, tzinfo=d.timezone.utc)]",
         "import datetime as d\nassert f() == [d.date(2020, 1, 2), d.datetime(2020, 1, 2, tzinfo=d.timezone.utc)]"),
        ("from fractions import Fraction\ndef f(x): return x * 2 == 3 and Fraction(1, 2)",
         "from fractions import Fraction\nfrom decimal import Decimal\nassert f(Decimal('1.5')) == Fraction(1, 2)"),
        ("class f:\n    def __len__(self): return 2\n    def __getitem__(self, n): return [7, 8][n]\n"
         "    def __str__(self): return 'two'", "assert len(f()) == 2 and list(f()) == [7, 8] and str(f()) == 'two'"),
        ("class Bad(ValueError): pass\ndef f(x): raise Bad('x', x)",
         "try:\n    f(-1)\n    assert False\nexcept ValueError as error:\n    assert error.args == ('x', -1)"),
    ],
)  # fmt: skip
def test_values_survive_the_pipe(program: str, test: str) -> None:
    assert judge(program, test).correct


WRITE = """
import os
for n in range(3, 20):
    try:
        os.write(n, {})
    except OSError:
        pass
def f(x): pass
"""
CHEATS = {
    "exit": "import sys\nsys.exit(0)",
    "exit_in_call": "import sys\ndef f(x): sys.exit(0)",
    "exit_code": f"import os\ndef f(x): os._exit({harness.PASSED})",
    "exit_at_once": f"import os\nos._exit({harness.PASSED})",
    "atexit": f"import atexit, os\natexit.register(os._exit, {harness.PASSED})\nraise SystemExit",
    "always_equal": "class A:\n    def __eq__(self, other): return True\ndef f(x): return A()",
    "always_equal_int": "class A(int):\n    def __eq__(self, other): return True\ndef f(x): return A(7)",
    "always_equal_list": "class A(list):\n    def __eq__(self, other): return True\ndef f(x): return A()",
    "patched_eq": "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.isinstance = max\nf = int",
    "patched_all": "import builtins\nfor n in dir(builtins):\n    setattr(builtins, n, lambda *a, **k: True)\nf = 1",
    "trace": "import sys\nsys.settrace(lambda *a: None)\ndef f(x): return 0",
    "prints": "print('passed')\ndef f(x): print('passed')",
    "write_all": WRITE.format(f"b'passed' * 9 + bytes([{harness.PASSED}])"),
    "forged_reply": WRITE.format("(6).to_bytes(8, 'big') + b't2:v4:Truev4:True'"),
    "close": "import os\nos.closerange(0, 100)\ndef f(x): return 3",
    "own_math": "class math:\n    isclose = lambda *a, **k: True\ndef f(x): return 0",
    "minus": "class A:\n    __sub__ = __abs__ = __float__ = lambda *a: 0.\n    __lt__ = max\ndef f(x): return A()",
    "own_abs": "abs = lambda x: 0\ndef f(x): return 0",
    "raises": "def f(x): raise AssertionError",
    "stops": "def f(x): raise StopIteration",
}  # fmt: skip


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_fail(name: str) -> None:
    verdict = judge(CHEATS[name], "assert abs(f(2) - 3) < 0.1 and math.isclose(f(2), 3) and f(2) == 3")
    assert not verdict.correct
    assert not verdict.unknown
    assert verdict.reason in ("error", "failed test", "ended early", "function not defined")


def test_expected_value_is_not_in_the_programs_process() -> None:
    """The program searches all objects and stack frames of its process, and returns whether the value is there."""
    program = """
import gc, os, sys
def f(x, *end):
    frame, scopes = sys._getframe().f_back, []
    while frame:
        scopes += [frame.f_globals, frame.f_locals]
        frame = frame.f_back
    texts = [repr(o) for o in [*gc.get_objects(), *scopes, sys.argv, sys.orig_argv, dict(os.environ)]]
    return any("".join(map(chr, reversed(x))) in text for text in texts)
"""
    codes = [ord(letter) for letter in reversed("wanted value")]
    assert judge(program, f"assert f({codes}) == ('wanted value' == 'another')").correct
    assert judge(program, f"assert f({codes}, ['wanted value'])").correct  # it does find its arguments


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"tests": []}, "no tests"),
        ({}, "no tests"),
        ({"tests": ["assert f("]}, "unreadable tests"),
        ({"tests": "assert f(1)"}, "unreadable tests"),
        ({"tests": ["import no_such_module\nf(1)"]}, "unreadable tests"),
        ({"tests": ["assert f(1) is True", "assert f(lambda x: x, 2) == 3"]}, "unreadable tests"),
        ({"tests": ["class A: pass\nassert f([A()]) == 3"]}, "unreadable tests"),
        ({"tests": ["a, b = f(1)", "assert f(int, '2') == 2"]}, "unreadable tests"),
        ({"tests": ["assert 1 + 1 == 2"]}, "tests call no function"),
        ({"tests": ["assert sum([1, 2]) == 3"]}, "tests call no function"),
        ({"tests": ["assert f(object())"]}, "unreadable tests"),
        ({"inputs": ["1"], "outputs": []}, "unreadable tests"),
        ({"inputs": [], "outputs": []}, "no tests"),
    ],
)
def test_unusable_tests_give_unknown_for_any_completion(data: dict[str, Any], reason: str) -> None:
    for completion in ("", f"```python\n{RIGHT}\n```", "```python\ng = 1\n```", "```python\nraise ValueError\n```"):
        assert check(Question("q", "?", "", data), completion) == Verdict.not_known(reason)


@pytest.mark.parametrize(
    "test",
    [
        "a, b = f(1)\nassert a < b",
        "for item in f(1).items:\n    f(item, key=f)\nassert abs(f(1)[0] - 2) < 0.1 and -f(2) ** 2 in f(3)",
        "assert sorted(f(1)) == [1] and len(f(1)) == 2 and str(f(1)) == '' and round(f(1), 2) == int(f(2))",
        "f(1)\nwhile True: pass",
    ],
)
def test_dry_run_accepts_usable_tests(test: str) -> None:
    assert not check(Question("q", "?", "", {"tests": [test]}), "").unknown


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
))  # fmt: skip
def test_message_round_trip(value: object) -> None:
    assert harness.load(harness.dump(value, id), id) == value


@given(st.binary(max_size=60) | st.text("vigsbldtezrnom0123456789:-xF", max_size=60).map(str.encode))
def test_malformed_messages_raise_or_load_as_values(message: bytes) -> None:
    try:
        value = harness.load(message, lambda number: number)
    except Exception:
        return
    assert harness.load(harness.dump(value, id), id) == value or value != value or hasattr(value, "__next__")


# Programs judged by their output.


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("1 2\n3\n", "1\n2 3", True),
        ("1 2", "1 2 3", False),
        ("0.3333333", "0.333333333", True),
        ("0.3334", "0.333333333", False),
        ("1e3", "1000.0", True),
        ("1000000001", "1000000000", False),  # integers must match exactly
        ("1000000.0", "1000000", False),
        ("nan", "1.0", False),
        ("YES", "Yes", False),
        ("", "", True),
    ],
)
def test_outputs_are_compared_word_by_word(output: str, expected: str, same: bool) -> None:
    assert outputs_match(output, expected) == same


def test_every_input_is_run() -> None:
    data = {"inputs": ["1 2", "3 4"], "outputs": ["3\n", "7"]}

    def verdict(program: str) -> Verdict:
        return check(Question("q", "?", "", data), f"```python\n{program}\n```")

    assert verdict("if __name__ == '__main__':\n    print(sum(map(int, input().split())))").strict
    assert verdict("print(3)").reason == "failed test"
    assert verdict("print(3); 1 / 0").reason == "error"
    assert verdict("while True: print('x' * 9999)").reason == "output limit"
    assert verdict("import os\nprint(sum(map(int, open(0).read().split())), flush=True)\nos._exit(0)").correct


def test_machine_errors_are_retried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    question = Question("q", "?", "", {"inputs": ["1"], "outputs": ["1"]})
    start, failures = sandbox.Process.start, [MachineError("late")]

    def start_or_fail(process: sandbox.Process, payload: Any) -> None:
        if failures:
            raise failures.pop()
        start(process, payload)

    monkeypatch.setattr(sandbox.Process, "start", start_or_fail)
    assert check(question, "```python\nprint(1)\n```").correct
    failures += [OSError("no room left")]
    assert check(question, "```python\nprint(1)\n```").correct
    failures += [OSError("no room left")] * 2
    with pytest.raises(MachineError, match="no room left"):
        check(question, "```python\nprint(1)\n```")


def test_pool_judges_programs() -> None:
    question = Question("q", "?", "", {"tests": ["assert f(2) == 3"]})
    programs = [RIGHT, "def f(x): return 0", "while True: pass", RIGHT]
    traces = [(question, Trace("q", n, f"```python\n{program}\n```")) for n, program in enumerate(programs)]
    name = "code" if check is check_code else "code_without_sandbox"
    with CheckerPool(name, 2, seconds_per_trace=10.0) as pool:
        verdicts = list(pool.judge(traces))
    assert [verdict.reason for verdict in verdicts] == ["", "failed test", "time limit", ""]
