"""reasoning_gym: supported data sets accept their own answers only, and those that evaluate text are refused."""

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

from tpt_jax.checks.answers.announce import Kind
from tpt_jax.checks.answers.extract import Missing, extract_answer
from tpt_jax.checks.answers.tagged import TEXT_READER
from tpt_jax.checks.pool import CheckerPool
from tpt_jax.checks.reasoning_gym import check_reasoning_gym
from tpt_jax.checks.refused_data_sets import REFUSED
from tpt_jax.errors import InvalidRecordError, UserError
from tpt_jax.records import Question, Trace, Verdict
from tpt_jax.tasks import ReasoningGymConfig, load_task
from tpt_jax.tasks.decontamination import normalised

SUPPORTED = sorted(DATASETS.keys() - REFUSED.keys())
LIBRARY = Path(inspect.getfile(reasoning_gym)).parent
# The library gives no solution for these puzzles: make them easy enough to solve here.
OPTIONS: dict[str, dict[str, Any]] = {"rush_hour": {"max_moves": 2}}


# A dependency of the library leaves its puzzle file open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def draw(dataset: str, count: int, **options: Any) -> list[dict[str, Any]]:
    with contextlib.redirect_stdout(io.StringIO()):
        entries = reasoning_gym.create_dataset(dataset, seed=5, size=count, **options)
        return [entries[index] for index in range(count)]


def read_from_json(entry: dict[str, Any], options: dict[str, Any] | None = None) -> Question:
    """Converts a library entry to a question by way of JSON, as when it is read from a file."""
    line = json.loads(json.dumps({**entry, "options": options or {}}))
    return ReasoningGymConfig.read_question("q", line)


def judge(question: Question, answer: str) -> Verdict:
    return check_reasoning_gym(question, f"Let me think.\n<answer>{answer}</answer>")


# Reference answers are correct, also after a JSON round trip, and variations of them are not.


@pytest.mark.parametrize("dataset", SUPPORTED)
def test_only_the_reference_answer_is_correct(dataset: str) -> None:
    options = OPTIONS.get(dataset, {})
    for entry in draw(dataset, 2, **options):
        question = read_from_json(entry, options)
        answer = reference_answer(dataset, entry)
        assert judge(question, answer) == Verdict(answer.strip(), strict=True, correct=True)
        assert question == read_from_json(entry, options)  # scorers modify their entry, but not our question
        accepted = [wrong for wrong in wrong_answers(answer) if judge(question, wrong).correct]
        assert not accepted


def wrong_answers(answer: str) -> list[str]:
    """Wrong answers, some of which contain the correct one."""
    templates = (
        "not {}",
        "999 or {}",
        "{} or 999",
        "{}, or 5",
        "{} is wrong, it is 5",
        "It is false that {}",
        "{0}\n{0}1",
    )
    minus = [f"-{answer}"] if answer not in ("0", "0.0") else []
    return ["no idea", "nan", "[]", "-12345", "0.123", *(template.format(answer) for template in templates), *minus]


def reference_answer(dataset: str, entry: dict[str, Any]) -> str:
    """Returns the library's answer; for puzzles with many solutions, its example or a solution found here."""
    metadata = entry["metadata"]
    match dataset:
        case "graph_color":
            return json.dumps(metadata["possible_answer"])
        case "propositional_logic":
            return metadata["example_answer"]
        case "rubiks_cube":
            return metadata["example_correct_answer"]
        case "boxnet":
            return json.dumps(list(solve_boxnet(metadata["initial_state"])))
        case "rush_hour":
            return solve_rush_hour(metadata["board_config"])
        case _:
            return entry["answer"]


def solve_boxnet(state: dict[str, list[str]]) -> Iterator[dict[str, str]]:
    """Moves one box after another to its target, first to the target's row, then to its column."""
    for square, items in state.items():
        for box in (item for item in items if item.startswith("box_")):
            target = box.replace("box_", "target_")
            row, column = map(float, square.split("_"))
            goal_row, goal_column = map(float, next(key for key in state if target in state[key]).split("_"))
            while (row, column) != (goal_row, goal_column):
                agent = f"Agent[{row}, {column}]"
                if row != goal_row:
                    row += 1 if goal_row > row else -1
                else:
                    column += 1 if goal_column > column else -1
                yield {agent: f"move({box}, square[{row}, {column}])"}
            yield {f"Agent[{row}, {column}]": f"move({box}, {target})"}


def solve_rush_hour(config: str) -> str:
    """Searches breadth-first for single-square moves that lead to the exit."""
    cars = [chr(ord("A") + index) for index in range(len(set(config) - set("ox.")))]
    queue, seen = [""], {str(rush_hour.Board(config))}
    for moves in queue:
        for car, step in itertools.product(cars, ("+1", "-1")):
            board = rush_hour.Board(config)
            board.perform_moves(f"{moves} {car}{step}")
            if board.solved:
                return f"{moves} {car}{step}"
            if str(board) not in seen:
                seen.add(str(board))
                queue.append(f"{moves} {car}{step}")
    raise AssertionError("the puzzle has no solution")


# Refused data sets.

# Calls that may execute text as code, and modules that offer such calls.
DANGEROUS_CALLS = {
    "eval", "exec", "compile", "__import__", "sympify", "parse_expr",
    "parse_latex", "lambdify", "system", "popen",
}  # fmt: skip
DANGEROUS_MODULES = {
    "subprocess", "pickle", "marshal", "shelve", "ctypes", "importlib",
    "runpy", "socket", "urllib", "requests",
}  # fmt: skip
# Reviewed: these evaluate text the library itself writes while it generates a question, never an answer.
REVIEWED = {
    "arithmetic/basic_arithmetic.py": {"eval"},
    "arithmetic/gsm_symbolic/generators_00_49.py": {"eval"},
    "arithmetic/gsm_symbolic/generators_50_99.py": {"eval"},
    "code/bf.py": {"compile"},  # a toy language, compiled by the library's own functions
    "code/contrib/bfit/BF-it.py": {"compile"},
    "code/contrib/bfit/Compiler/Compiler.py": {"compile"},
    "logic/propositional_logic.py": {"parse_expr"},  # the library's own parser
}


def test_every_data_set_that_executes_text_is_refused() -> None:
    """Fails for a library version that executes text in new files: review them before supporting it."""
    found: dict[str, set[str]] = {}
    for path in LIBRARY.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if not any(name in text for name in DANGEROUS_CALLS | DANGEROUS_MODULES):
            continue  # saves parsing the file
        names = set(find_dangerous_names(ast.parse(text)))
        unreviewed = names - REVIEWED.get(path.relative_to(LIBRARY).as_posix(), set())
        if unreviewed:
            found[path.relative_to(LIBRARY).as_posix()] = unreviewed
    refused = {
        Path(inspect.getfile(DATASETS[name][0])).relative_to(LIBRARY).as_posix()
        for name, reason in REFUSED.items()
        if "evaluates" in reason or "runs model-written programs" in reason
    }
    assert found.keys() == refused, found


def find_dangerous_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in DANGEROUS_CALLS:
                yield name
            case ast.Call(func=ast.Attribute(value=owner, attr=name)) if name in DANGEROUS_CALLS:
                if not (isinstance(owner, ast.Name) and owner.id == "re"):
                    yield name
            case ast.Import(names=aliases):
                yield from DANGEROUS_MODULES & {alias.name.partition(".")[0] for alias in aliases}
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in DANGEROUS_MODULES and not node.level:
                if module != "importlib" or {alias.name for alias in node.names} != {"resources"}:
                    yield module


def test_data_sets_refused_for_lenient_scores_still_give_them() -> None:
    for dataset, wrong in (("game_of_life_halting", "no idea"), ("coin_flip", "0"), ("complex_arithmetic", "nan")):
        entry = draw(dataset, 1)[0]
        assert entry["answer"] != wrong
        assert reasoning_gym.create_dataset(dataset, seed=0, size=1).score_answer(wrong, entry) == 1.0


def test_refused_data_set_is_never_loaded_or_scored(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    with pytest.raises(
        UserError, match=r"task\.dataset \('n_queens'\): not used: the library evaluates the model's answer"
    ):
        load_task(ReasoningGymConfig("reasoning_gym", "n_queens"))
    entry = draw("n_queens", 1)[0]
    with pytest.raises(InvalidRecordError, match="n_queens, which is not used"):
        read_from_json(entry)
    smuggled = Question("q", "?", "", {"dataset": "n_queens", "options": {}, "metadata": entry["metadata"]})
    assert judge(smuggled, f"open({str(trap)!r}, 'w')").unknown
    assert not trap.exists()


def test_other_processes_draw_the_same_questions() -> None:
    """All hosts need the same questions, and so does a resumed run, with any hash seed."""
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
    texts = {name: draw(name, 1)[0]["question"] for name in SUPPORTED}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


# The checker.

SUM = read_from_json(draw("chain_sum", 1, min_terms=2, max_terms=2, min_digits=1, max_digits=1)[0])


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
        ("</answer>7<answer>", None, False),
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
    found = extract_answer(completion, TEXT_READER)
    if isinstance(found, Missing):
        assert answer is None
    else:
        is_tag = found.announcement is not None and found.announcement.kind is Kind.TAG
        assert (found.value, is_tag) == (answer, in_tags)


def test_verdicts() -> None:
    answer = SUM.answer
    assert check_reasoning_gym(SUM, f"<answer>{answer}</answer>") == Verdict(answer, strict=True, correct=True)
    assert check_reasoning_gym(SUM, f"#### {answer}") == Verdict(answer, strict=False, correct=True)
    partial_credit = f"<answer>{answer}, I think</answer>"
    assert check_reasoning_gym(SUM, partial_credit).correct is False
    assert check_reasoning_gym(SUM, "").reason == "no answer"
    assert check_reasoning_gym(SUM, f"<answer>{'1' * 20_000}</answer>").reason == "answer too long"
    assert judge(read_from_json(draw("prime_factorization", 1)[0]), "two").reason == "unreadable answer"
    assert judge(Question("q", "?", "7"), "7").unknown


@pytest.mark.parametrize(
    ("dataset", "template", "correct"),
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
def test_correct_answers_contain_nothing_else(dataset: str, template: str, correct: bool) -> None:
    question = read_from_json(draw(dataset, 1)[0])
    assert check_reasoning_gym(question, template.format(question.answer)).correct is correct


def test_score_above_one_is_not_correct() -> None:
    entry = {"question": "?", "answer": "-1", "metadata": {"source_dataset": "calendar_arithmetic"}}
    entry["metadata"]["task"] = "recurring_event_day"
    assert reasoning_gym.create_dataset("calendar_arithmetic", seed=0, size=1).score_answer("5", entry) > 1
    assert not judge(read_from_json(entry), "5").correct
    assert judge(read_from_json(entry), "-1").correct


def test_answers_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    question = read_from_json(draw("tower_of_hanoi", 1)[0])
    assert not judge(question, "Move disk 99 from Peg 1 to Peg 77").correct
    assert capsys.readouterr().out == ""


def test_pool_judges_answers() -> None:
    """A worker creates each data set itself and judges several traces with it."""
    questions = [read_from_json(entry) for name in ("knight_swap", "arc_agi", "chain_sum") for entry in draw(name, 1)]
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


def test_splits_are_disjoint_and_reproducible() -> None:
    config = ReasoningGymConfig("reasoning_gym", "tower_of_hanoi", {"max_disks": 4}, num_train=20, num_test=5)
    task = load_task(config)
    assert (len(task.train), len(task.test), task.num_contaminated) == (20, 5, 0)
    assert len({normalised(question.question) for question in (*task.train, *task.test)}) == 25
    assert task == load_task(config)


@pytest.mark.parametrize("dataset", ["emoji_mystery", "modulo_grid", "rectangle_count"])
def test_puzzles_made_of_symbols_are_not_mistaken_for_duplicates(dataset: str) -> None:
    assert load_task(ReasoningGymConfig("reasoning_gym", dataset, num_train=20, num_test=5)).num_contaminated == 0


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (
            "chain_sums",
            {},
            r"task\.dataset \('chain_sums'\): unknown to reasoning_gym; did you mean",
        ),
        ("?", {}, "choose from ab, acre, "),
        (
            "chain_sum",
            {"min_term": 2},
            r"task\.options\.min_term: unknown to reasoning_gym's chain_sum; did you",
        ),
        ("chain_sum", {"seed": 2}, r"task\.options\.seed: cannot be set; set task\.num_train"),
        (
            "chain_sum",
            {"min_terms": 0},
            r"fails with these options \(min_terms must be positive\); its options are",
        ),
        ("chain_sum", {"min_terms": "two"}, r"chain_sum fails with these options \('"),
        ("tower_of_hanoi", {"max_disks": 3}, r"task\.num_train \(90\): only \d+ different questions in 1800"),
    ],
)
def test_invalid_settings_are_refused(dataset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_task(ReasoningGymConfig("reasoning_gym", dataset, options, num_train=90, num_test=3))
    assert "\n" not in str(raised.value)
    assert not re.search(r"<\w", str(raised.value))


def test_invalid_entries_are_refused() -> None:
    with pytest.raises(InvalidRecordError, match='lacks "question" or "metadata"'):
        ReasoningGymConfig.read_question("q", {"question": "1 + 1?", "answer": "2"})
