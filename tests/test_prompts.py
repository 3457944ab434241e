"""The prompt's contract, on the quickstart's tokenizer and on templates that break it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tpt_jax.errors import UserError
from tpt_jax.library.finetune_file import read_examples
from tpt_jax.library.sample_file import read_prompts
from tpt_jax.library.verbs import show_prompts
from tpt_jax.prompts import PLAIN_TEMPLATE, load_prompt
from tpt_jax.quickstart.corpus import Text
from tpt_jax.quickstart.make_base import CHAT_TEMPLATE, write_tokenizer
from tpt_jax.records import Question, QuestionSet
from tpt_jax.tasks import Shot, Task

QUESTION = Question("q", "How many apples are 3 apples and 4 apples?", "7")

# As in google/gemma-2-2b-it's tokenizer_config.json: what follows the turn's end is not part of what is trained.
GEMMA_LIKE = (
    "{{ bos_token }}{% for message in messages %}{{ '<user>' if message['role'] == 'user' else '<model>' }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<model>\n{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, [Text(QUESTION.question, "3 + 4 = 7\n#### 7")])
    return tmp_path


def with_template(folder: Path, template: str | None, **changes: Any) -> Path:
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "chat_template": template, **changes}
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
    return folder


def test_the_prompt_does_not_depend_on_the_day(folder: Path) -> None:
    """LLaMA 3.2's template, as far as it asks for the date."""
    dated = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    template = CHAT_TEMPLATE.replace("{{ bos_token }}", dated + "{{ bos_token }}Today: {{ date_string }} ", 1)
    assert template != CHAT_TEMPLATE
    prompt = load_prompt(with_template(folder, template), "")
    assert "26 Jul 2024" in prompt.text(prompt.prompt_ids("?"))


SHOTS = (Shot("How many apples are 3 apples and 4 apples?", "#### 7"), Shot("How many apples are 4 apples?", "#### 4"))


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, GEMMA_LIKE, None])
def test_examples_stand_before_the_question(folder: Path, template: str | None) -> None:
    """As turns of their own, each with the instruction; what trains is still what samples, and more."""
    prompt = load_prompt(with_template(folder, template), "3", SHOTS)
    prompt.check_contract([QUESTION])
    text = prompt.text(prompt.prompt_ids("4 apples?"), with_special=True)
    assert text.count("#### 7") == text.count("#### 4") == 1
    assert text.index("#### 7") < text.index("#### 4") < text.rindex("4 apples?")
    assert text.count("?\n3") == 3
    assert text.count("<end_of_turn>") == (0 if template is None else 2 if template == CHAT_TEMPLATE else 5)


def test_what_a_file_of_traces_is_trained_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not what was not kept, was cut, or answers a test question in whatever spelling."""
    task = Task("mine", QuestionSet((QUESTION,)), QuestionSet((Question("t", "3 apples and 4 apples?", "7"),)))
    lines = [
        {"id": "q", "completion": "#### 7"},
        {"id": "q", "sample": 1, "completion": "#### 8", "kept": False},
        {"id": "q", "sample": 2, "completion": "3 + 4", "finish_reason": "length"},
        {"id": "t", "completion": "#### 7"},
        {"id": "new", "question": "3  apples AND 4 apples", "completion": "#### 7"},
        {"id": "new", "question": "4 apples?", "completion": "#### 4"},
    ]
    path = tmp_path / "traces.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    prompt = load_prompt(folder)
    examples = read_examples(path, task, prompt, vocab_size=10_000)
    assert [prompt.text(example.tokens[example.num_prompt :]) for example in examples] == ["#### 7", "#### 4"]
    told = capsys.readouterr().err
    assert "1 traces are left out, cut before their end" in told
    assert "2 traces are left out, of test questions" in told
    path.write_text('{"id": "unheard of", "completion": "#### 7"}')
    with pytest.raises(UserError, match=r"traces\.jsonl:1: lacks a \"question\", and no question of the task has"):
        read_examples(path, task, prompt, vocab_size=10_000)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": 7}, "the id '7' is that of a training and of a test question; write the \"question\" too"),
        ({"question": "?", "token_ids": 5}, "has token_ids that the model's vocabulary has not"),
        ({"question": "?", "token_ids": "ab"}, "has token_ids that"),
        ({"question": "?", "token_ids": [True]}, "has token_ids that"),
        ({"question": "?", "token_ids": [10_000]}, "has token_ids that"),
        ({"question": "?", "kept": "false"}, 'has a "kept" of type str; write true or false, without quotes'),
        ({"question": "?", "sample": -1}, "the sample -1 is no whole number from 0"),
        ({"question": "?", "sample": True}, "the sample True is no whole number"),
        (
            {"question": "?", "finish_reason": "eos_token"},
            r"the finish_reason 'eos_token' is neither \"stop\" nor \"length\"; write",
        ),
        ({"question": ["?"], "id": "7"}, 'lacks a text under "question"'),
        ({"question": "?", "id": [1]}, 'has an "id" of type list'),
        ({}, 'lacks an "id"; write that of its question'),
    ],
)
def test_lines_that_are_no_traces_are_named(folder: Path, tmp_path: Path, line: dict[str, Any], message: str) -> None:
    task = Task("mine", QuestionSet((Question("7", "1 + 6?", "7"),)), QuestionSet((Question("7", "2 + 5?", "7"),)))
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps({"completion": "#### 7", **line}))
    with pytest.raises(UserError, match=rf"traces\.jsonl:1: {message}"):
        read_examples(path, task, load_prompt(folder), vocab_size=10_000)


def test_what_is_null_counts_as_not_given(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    nothing = dict.fromkeys(("kept", "sample", "question", "finish_reason", "token_ids"))
    path.write_text(json.dumps({"id": 7.0, "completion": "#### 7", **nothing}))
    task = Task("mine", QuestionSet((Question("7", "1 + 6?", "7"),)), QuestionSet((Question("t", "2 + 5?", "7"),)))
    (example,) = read_examples(path, task, load_prompt(folder), vocab_size=10_000)
    assert example.id == "7/0"
    path.write_text('{"id": null, "prompt": "a"}\n{"id": 2.0, "prompt": "b"}')
    assert read_prompts(path) == {"0": "a", "2": "b"}


def test_prompts_are_shown_as_the_model_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quickstart = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
    assert show_prompts(1, quickstart, {"prompt.instruction": "Think."}, None, None) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"^=== gsm_symbolic/train/0: \d+ tokens, .*<end_of_turn>\n<bos><user>.*<model>\n$", shown, re.DOTALL
    )
    (tmp_path / "prompts.jsonl").write_text('{"id": "sum", "prompt": "2 + 2 ="}\n')
    assert show_prompts(3, None, {}, "quickstart", tmp_path / "prompts.jsonl") == 0
    assert "<bos><user>2 + 2 =<model>" in capsys.readouterr().out
    with pytest.raises(UserError, match="needs --config FILE, or --model DIR and --prompts"):
        show_prompts(3, None, {}, "quickstart", None)
    with pytest.raises(UserError, match=r"prompt\.num_shots \(1\): task gsm_symbolic has 0 examples"):
        show_prompts(3, quickstart, {"prompt.num_shots": "1"}, None, None)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, GEMMA_LIKE, None])
def test_sampler_reads_the_prefix_of_what_training_reads(folder: Path, template: str | None) -> None:
    prompt = load_prompt(with_template(folder, template), "Think.")
    prompt.check_contract([QUESTION])
    completion = prompt.completion_ids("3 + 4 = 7")
    example = prompt.example(QUESTION.question, completion)
    ids = prompt.prompt_ids(QUESTION.question)
    assert example.tokens[: example.num_prompt] == ids
    assert example.tokens[example.num_prompt :] == (*completion, prompt.end_of_turn)
    assert ids.count(1) == 1  # <bos>
    assert prompt.stop_ids == (4,)  # <end_of_turn>
    assert prompt.text(completion) == "3 + 4 = 7"


def test_end_of_turn_is_the_templates_not_eos(folder: Path) -> None:
    """Gemma's eos_token is <eos>, yet its turns end in <end_of_turn>; either stops the sampler."""
    prompt = load_prompt(with_template(folder, GEMMA_LIKE, eos_token="<pad>"), "")
    assert prompt.end_of_turn == 4
    assert prompt.stop_ids == (0, 4)


def test_instruction_is_part_of_every_prompt(folder: Path) -> None:
    prompt = load_prompt(folder, "Think first.")
    assert "Think first." in prompt.text(prompt.prompt_ids("Why?"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ bos_token }}" + CHAT_TEMPLATE, "BOS 2 times"),
        (CHAT_TEMPLATE.replace("<end_of_turn>", ""), "no special token follows the answer"),
        (CHAT_TEMPLATE.replace("{% if add_generation_prompt %}<model>{% endif %}", ""), "not the prefix"),
    ],
)
def test_a_template_that_breaks_the_contract_is_refused(folder: Path, template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_prompt(with_template(folder, template), "").check_contract([QUESTION])


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load_prompt(tmp_path, "")


def test_plain_template_ends_a_turn_with_eos() -> None:
    assert PLAIN_TEMPLATE.count("eos_token") == 1
