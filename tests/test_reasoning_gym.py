"""reasoning_gym's data sets: each that is used judges its own answers, and none is used that runs a stranger's text."""

import ast
import contextlib
import hashlib
import inspect
import io
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS
from reasoning_gym.games import rush_hour

from tpt_jax.checks.pool import CheckerPool
from tpt_jax.checks.reasoning_gym import check_reasoning_gym, extract
from tpt_jax.checks.refused_data_sets import REFUSED
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.records import Question, Trace, Verdict
from tpt_jax.tasks import ReasoningGymConfig, load_task
from tpt_jax.tasks.decontamination import normalised

USED = sorted(DATASETS.keys() - REFUSED.keys())
LIBRARY = Path(inspect.getfile(reasoning_gym)).parent
# Puzzles that are solved quickly here, for the library does not tell their solutions.
OPTIONS: dict[str, dict[str, Any]] = {"rush_hour": {"max_moves": 2}}


# A package from which the library has its boards leaves their file open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def draw(dataset: str, count: int, **options: Any) -> list[dict[str, Any]]:
    with contextlib.redirect_stdout(io.StringIO()):
        made = reasoning_gym.create_dataset(dataset, seed=5, size=count, **options)
        return [made[index] for index in range(count)]


def through_a_file(entry: dict[str, Any], options: dict[str, Any] | None = None) -> Question:
    line = json.loads(json.dumps({**entry, "options": options or {}}))
    return ReasoningGymConfig.read_question("q", line)


def judge(question: Question, answer: str) -> Verdict:
    return check_reasoning_gym(question, f"Let me think.\n<answer>{answer}</answer>")


# What the library calls right is right, also after a way through a file.


@pytest.mark.parametrize("dataset", USED)
def test_the_librarys_own_answer_is_right(dataset: str) -> None:
    options = OPTIONS.get(dataset, {})
    for entry in draw(dataset, 2, **options):
        question = through_a_file(entry, options)
        answer = reference(dataset, entry)
        assert judge(question, answer) == Verdict(answer.strip(), strict=True, correct=True)
        assert question == through_a_file(entry, options)  # though the library writes into what it is given
        passed = [wrong for wrong in spoilt(answer) if judge(question, wrong).correct]
        assert not passed


def spoilt(answer: str) -> list[str]:
    """Wrong answers, some of which hold the right one."""
    around = (
        "not {}",
        "999 or {}",
        "{} or 999",
        "{}, or 5",
        "{} is wrong, it is 5",
        "It is false that {}",
        "{0}\n{0}1",
    )
    minus = [f"-{answer}"] if answer not in ("0", "0.0") else []
    return ["no idea", "nan", "[]", "-12345", "0.123", *(form.format(answer) for form in around), *minus]


def reference(dataset: str, entry: dict[str, Any]) -> str:
    """The library's answer; where it has none, for many are right, its example or one that we find."""
    metadata = entry["metadata"]
    match dataset:
        case "graph_color":
            return json.dumps(metadata["possible_answer"])
        case "propositional_logic":
            return metadata["example_answer"]
        case "rubiks_cube":
            return metadata["example_correct_answer"]
        case "boxnet":
            return json.dumps(list(boxes_to_targets(metadata["initial_state"])))
        case "rush_hour":
            return cars_out_of_the_way(metadata["board_config"])
        case _:
            return entry["answer"]


def boxes_to_targets(state: dict[str, list[str]]) -> Iterator[dict[str, str]]:
    """One box after another goes along its column, then along its row."""
    for place, items in state.items():
        for box in (item for item in items if item.startswith("box_")):
            target = box.replace("box_", "target_")
            (row, column), goal = map(float, place.split("_")), next(key for key in state if target in state[key])
            goal_row, goal_column = map(float, goal.split("_"))
            while (row, column) != (goal_row, goal_column):
                here = f"Agent[{row}, {column}]"
                if row != goal_row:
                    row += 1 if goal_row > row else -1
                else:
                    column += 1 if goal_column > column else -1
                yield {here: f"move({box}, square[{row}, {column}])"}
            yield {f"Agent[{row}, {column}]": f"move({box}, {target})"}


def cars_out_of_the_way(config: str) -> str:
    """The moves of one car by one place that lead to the exit: breadth first."""
    letters = [chr(ord("A") + index) for index in range(len(set(config) - set("ox.")))]
    waiting, seen = [""], {str(rush_hour.Board(config))}
    for moves in waiting:
        for letter, step in itertools.product(letters, ("+1", "-1")):
            board = rush_hour.Board(config)
            board.perform_moves(f"{moves} {letter}{step}")
            if board.solved:
                return f"{moves} {letter}{step}"
            if str(board) not in seen:
                seen.add(str(board))
                waiting.append(f"{moves} {letter}{step}")
    raise AssertionError("no way out")


# What is refused, and why.

# Calls by which text could become code; and modules that have such calls of their own.
RUNS = {"eval", "exec", "compile", "__import__", "sympify", "parse_expr", "parse_latex", "lambdify", "system", "popen"}
MODULES = {"subprocess", "pickle", "marshal", "shelve", "ctypes", "importlib", "runpy", "socket", "urllib", "requests"}
# Read by us: what is run there is text of the library's own making, when a question is made; never an answer.
HARMLESS = {
    "arithmetic/basic_arithmetic.py": {"eval"},
    "arithmetic/gsm_symbolic/generators_00_49.py": {"eval"},
    "arithmetic/gsm_symbolic/generators_50_99.py": {"eval"},
    "code/bf.py": {"compile"},  # of a toy language, by functions of the library
    "code/contrib/bfit/BF-it.py": {"compile"},
    "code/contrib/bfit/Compiler/Compiler.py": {"compile"},
    "logic/propositional_logic.py": {"parse_expr"},  # a parser of its own
}


def test_all_that_runs_text_is_refused() -> None:
    """A version of the library that runs text elsewhere is to be read before it is used."""
    found: dict[str, set[str]] = {}
    for path in LIBRARY.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if not any(name in text for name in RUNS | MODULES):
            continue  # parsing takes longer
        names = set(dangerous(ast.parse(text)))
        rest = names - HARMLESS.get(path.relative_to(LIBRARY).as_posix(), set())
        if rest:
            found[path.relative_to(LIBRARY).as_posix()] = rest
    refused = {
        Path(inspect.getfile(DATASETS[name][0])).relative_to(LIBRARY).as_posix()
        for name, reason in REFUSED.items()
        if "evaluates" in reason or "runs programs" in reason
    }
    assert found.keys() == refused, found


def dangerous(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in RUNS:
                yield name
            case ast.Call(func=ast.Attribute(value=owner, attr=name)) if name in RUNS:
                if not (isinstance(owner, ast.Name) and owner.id == "re"):
                    yield name
            case ast.Import(names=aliases):
                yield from MODULES & {alias.name.partition(".")[0] for alias in aliases}
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in MODULES and not node.level:
                if module != "importlib" or {alias.name for alias in node.names} != {"resources"}:
                    yield module


def test_what_is_refused_for_its_marks_still_gives_them() -> None:
    for dataset, wrong in (("game_of_life_halting", "no idea"), ("coin_flip", "0"), ("complex_arithmetic", "nan")):
        entry = draw(dataset, 1)[0]
        assert entry["answer"] != wrong
        assert reasoning_gym.create_dataset(dataset, seed=0, size=1).score_answer(wrong, entry) == 1.0


def test_a_refused_data_set_is_never_asked(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    with pytest.raises(UserError, match=r"task\.dataset \('n_queens'\): not used: the library evaluates what a model"):
        load_task(ReasoningGymConfig("reasoning_gym", "n_queens"))
    entry = draw("n_queens", 1)[0]
    with pytest.raises(InvalidRecordError, match="n_queens, which is not used"):
        through_a_file(entry)
    smuggled = Question("q", "?", "", {"dataset": "n_queens", "options": {}, "metadata": entry["metadata"]})
    assert judge(smuggled, f"open({str(trap)!r}, 'w')").unknown
    assert not trap.exists()


def test_other_processes_draw_the_same_questions() -> None:
    """All hosts of a run, and a run that goes on, have to have the same ones: sets must not be in the way."""
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]; from test_reasoning_gym import fingerprints; "
        "print(*fingerprints().items(), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    other = subprocess.run(
        [sys.executable, "-c", program, *paths], env=environment, capture_output=True, text=True, check=True
    )
    assert other.stdout.splitlines() == [str(item) for item in fingerprints().items()]


def fingerprints() -> dict[str, str]:
    texts = {name: draw(name, 1)[0]["question"] for name in USED}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


# The checker.

SUM = through_a_file(draw("chain_sum", 1, min_terms=2, max_terms=2, min_digits=1, max_digits=1)[0])


@pytest.mark.parametrize(
    ("completion", "answer", "in_tags"),
    [
        ("The answer is **7**.", "7", False),
        ("The answer is $7$", "7", False),
        ("The answer should be `7`.", "7", False),
        ("<answer>8</answer>\nWait, that is wrong. The answer must be 7.", "7", False),
        ("<answer>7</answer>\nThat is correct, and so the answer is 7.", "7", True),
        ("<think>I see <answer>8</answer></think>\n<answer>7</answer>\n\nQuestion: 1?\n<answer>1</answer>", "7", True),
        ("so <answer>7</answer>", "7", True),
        ("<answer>8</answer> no: <answer> 7\n</answer> done", "7", True),
        ("<answer>1 2\n3 4</answer>", "1 2\n3 4", True),
        ("<answer><answer>7</answer>", "7", True),
        ("</answer>7<answer>", "</answer>7<answer>", False),
        ("a\n#### 7\n", "7", False),
        ("####\n7", "7", False),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}", False),
        (r"\boxed{1", None, False),
        ("The **answer is: Anna is a knight.**", "Anna is a knight", False),
        ("The answer is 7.", "7", False),
        ("first\n\nlast line\n\n", "last line", False),
        ("  \n", None, False),
        ("", None, False),
    ],
)
def test_extraction(completion: str, answer: str | None, in_tags: bool) -> None:
    assert extract(completion)[:2] == (answer, in_tags)


def test_verdicts() -> None:
    right = SUM.answer
    assert check_reasoning_gym(SUM, f"<answer>{right}</answer>") == Verdict(right, strict=True, correct=True)
    assert check_reasoning_gym(SUM, f"#### {right}") == Verdict(right, strict=False, correct=True)
    assert check_reasoning_gym(SUM, f"<answer>{right}, I think</answer>").correct is False  # partial credit is none
    assert check_reasoning_gym(SUM, "").reason == "no answer"
    assert check_reasoning_gym(SUM, f"<answer>{'1' * 20_000}</answer>").reason == "answer too long"
    assert judge(through_a_file(draw("prime_factorization", 1)[0]), "two").reason == "unreadable answer"
    assert judge(Question("q", "?", "7"), "7").unknown


@pytest.mark.parametrize(
    ("dataset", "form", "right"),
    [
        ("gsm_symbolic", "<answer>{} apples</answer>", True),
        ("gsm_symbolic", "<answer>{}.5</answer>", False),
        ("gsm_symbolic", "<answer>{},000</answer>", False),
        ("fraction_simplification", "The answer is {}.", True),
        ("decimal_arithmetic", "<answer>{}0</answer>", True),
        ("decimal_arithmetic", "<answer>{:.5}</answer>", False),
        ("power_function", "<answer>{:.7}</answer>", False),
        ("chain_sum", "So the answer is **{}**.", True),
        ("chain_sum", "The answer is {}.\nWait, that is wrong. It should be 5.", False),
        ("chain_sum", "<answer>{}</answer>\nWait, I forgot the minus. It is 5.", False),
        ("chain_sum", "<answer>{0}</answer>\nLet me double-check: it comes to {0}.", True),
        ("sokoban", "The answer is `{}`.", True),
        ("kakurasu", "#### {}7", False),
    ],
)
def test_an_answer_is_the_answer_and_nothing_else(dataset: str, form: str, right: bool) -> None:
    question = through_a_file(draw(dataset, 1)[0])
    assert check_reasoning_gym(question, form.format(question.answer)).correct is right


def test_more_than_the_full_mark_is_not_right() -> None:
    entry = {"question": "?", "answer": "-1", "metadata": {"source_dataset": "calendar_arithmetic"}}
    entry["metadata"]["task"] = "recurring_event_day"
    assert reasoning_gym.create_dataset("calendar_arithmetic", seed=0, size=1).score_answer("5", entry) > 1
    assert not judge(through_a_file(entry), "5").correct
    assert judge(through_a_file(entry), "-1").correct


def test_what_a_model_wrote_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    question = through_a_file(draw("tower_of_hanoi", 1)[0])
    assert not judge(question, "Move disk 99 from Peg 1 to Peg 77").correct
    assert capsys.readouterr().out == ""


def test_in_checker_processes() -> None:
    """A new process makes each data set anew, and judges one trace after another."""
    questions = [through_a_file(entry) for name in ("knight_swap", "arc_agi", "chain_sum") for entry in draw(name, 1)]
    pairs = [
        (question, Trace("q", sample, f"<answer>{question.answer if sample % 2 else 'x'}</answer>"))
        for question in questions
        for sample in range(6)
    ]
    with CheckerPool("reasoning_gym", 1, seconds_per_trace=5.0) as pool:
        verdicts = list(pool.judge(pairs))
    assert [verdict.correct for verdict in verdicts] == [sample % 2 == 1 for _ in questions for sample in range(6)]
    assert {verdict.reason for verdict in verdicts} <= {"", "unreadable answer"}


# The task.


def test_splits_are_distinct_and_drawn_the_same_each_time() -> None:
    config = ReasoningGymConfig("reasoning_gym", "tower_of_hanoi", {"max_disks": 4}, num_train=20, num_test=5)
    task = load_task(config)
    assert (len(task.train), len(task.test), task.num_contaminated) == (20, 5, 0)
    assert len({normalised(question.question) for question in (*task.train, *task.test)}) == 25
    assert task == load_task(config)


@pytest.mark.parametrize("dataset", ["emoji_mystery", "modulo_grid", "rectangle_count"])
def test_puzzles_that_are_drawn_with_signs_are_not_all_one(dataset: str) -> None:
    assert load_task(ReasoningGymConfig("reasoning_gym", dataset, num_train=20, num_test=5)).num_contaminated == 0


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (
            "chain_sums",
            {},
            r"task\.dataset \('chain_sums'\): reasoning_gym has none of that name; did you mean",
        ),
        ("?", {}, "choose from ab, acre, "),
        (
            "chain_sum",
            {"min_term": 2},
            r"task\.options\.min_term: unknown to reasoning_gym's chain_sum; did you",
        ),
        ("chain_sum", {"seed": 2}, r"task\.options\.seed: not for you to set; set task\.num_train"),
        (
            "chain_sum",
            {"min_terms": 0},
            r"cannot work with them \(min_terms must be positive\); its options are",
        ),
        ("chain_sum", {"min_terms": "two"}, r"chain_sum cannot work with them \('"),
        ("tower_of_hanoi", {"max_disks": 3}, r"task\.num_train \(90\): only \d+ different questions in 1800"),
    ],
)
def test_mistakes_are_named(dataset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_task(ReasoningGymConfig("reasoning_gym", dataset, options, num_train=90, num_test=3))
    assert "\n" not in str(raised.value)
    assert not re.search(r"<\w", str(raised.value))


def test_entries_that_are_none_are_named() -> None:
    with pytest.raises(InvalidRecordError, match='lacks "question" or "metadata"'):
        ReasoningGymConfig.read_question("q", {"question": "1 + 1?", "answer": "2"})
