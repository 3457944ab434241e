"""The prompt contract, with the quickstart's tokenizer and with chat templates that break it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tpt_jax.commands.main import main
from tpt_jax.config_parsing import load_config
from tpt_jax.errors import UserError
from tpt_jax.library.finetune_file import read_examples
from tpt_jax.library.sample_file import read_prompts
from tpt_jax.library.show_prompts import show_file_prompts, show_run_prompts
from tpt_jax.prompts import PLAIN_TEMPLATE, load_prompt
from tpt_jax.quickstart.corpus import Text
from tpt_jax.quickstart.make_base import CHAT_TEMPLATE, write_tokenizer
from tpt_jax.records import Question, QuestionSet
from tpt_jax.tasks import Shot, Task

QUESTION = Question("q", "How many apples are 3 apples and 4 apples?", "7")

# Like google/gemma-2-2b-it's: a newline follows the end of turn, which is not trained on.
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
    """Uses the part of LLaMA 3.2's template that inserts the date."""
    dated = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    template = CHAT_TEMPLATE.replace("{{ bos_token }}", dated + "{{ bos_token }}Today: {{ date_string }} ", 1)
    assert template != CHAT_TEMPLATE
    prompt = load_prompt(with_template(folder, template), "")
    assert "26 Jul 2024" in prompt.text(prompt.prompt_ids("?"))


SHOTS = (Shot("How many apples are 3 apples and 4 apples?", "#### 7"), Shot("How many apples are 4 apples?", "#### 4"))


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, GEMMA_LIKE, None])
def test_shots_precede_the_question(folder: Path, template: str | None) -> None:
    """Each shot is a separate turn with the instruction, and the prompt contract still holds."""
    prompt = load_prompt(with_template(folder, template), "3", SHOTS)
    prompt.check_contract([QUESTION], 10_000)
    text = prompt.text(prompt.prompt_ids("4 apples?"))
    assert text.count("#### 7") == text.count("#### 4") == 1
    assert text.index("#### 7") < text.index("#### 4") < text.rindex("4 apples?")
    assert text.count("?\n3") == 3
    assert text.count("<end_of_turn>") == (0 if template is None else 2 if template == CHAT_TEMPLATE else 5)


def test_only_kept_finished_traces_of_training_questions_are_trained_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test question is recognised in any spelling."""
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
    assert [prompt.text(example.tokens[example.num_prompt :]) for example in examples] == [
        "#### 7<end_of_turn>",
        "#### 4<end_of_turn>",
    ]
    progress = capsys.readouterr().err
    assert "leaving out 1 traces cut short" in progress
    assert "leaving out 2 traces of test questions" in progress
    path.write_text('{"id": "unheard of", "completion": "#### 7"}')
    with pytest.raises(UserError, match=r"traces\.jsonl:1: lacks a \"question\", and no question of the task has"):
        read_examples(path, task, prompt, vocab_size=10_000)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": 7}, "a training and a test question share the id '7'; write the \"question\" too"),
        ({"question": "?", "token_ids": 5}, "has token_ids outside the model's vocabulary"),
        ({"question": "?", "token_ids": "ab"}, "has token_ids outside"),
        ({"question": "?", "token_ids": [True]}, "has token_ids outside"),
        ({"question": "?", "token_ids": [10_000]}, "has token_ids outside"),
        ({"question": "?", "kept": "false"}, 'has a "kept" of type str; write true or false, without quotes'),
        ({"question": "?", "sample": -1}, r'"sample" \(-1\) is not an integer from 0; number samples from 0'),
        ({"question": "?", "sample": True}, r'"sample" \(True\) is not an integer from 0; number samples from 0'),
        (
            {"question": "?", "finish_reason": "eos_token"},
            r"\"finish_reason\" \('eos_token'\) is neither \"stop\" nor \"length\"; write",
        ),
        ({"question": ["?"], "id": "7"}, 'lacks text under "question"'),
        ({"question": "?", "id": [1]}, 'has an "id" of type list'),
        ({}, 'lacks an "id"; write the id of its question'),
    ],
)
def test_invalid_traces_are_named(folder: Path, tmp_path: Path, line: dict[str, Any], message: str) -> None:
    task = Task("mine", QuestionSet((Question("7", "1 + 6?", "7"),)), QuestionSet((Question("7", "2 + 5?", "7"),)))
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps({"completion": "#### 7", **line}))
    with pytest.raises(UserError, match=rf"traces\.jsonl:1: {message}"):
        read_examples(path, task, load_prompt(folder), vocab_size=10_000)


def test_null_fields_count_as_missing(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    nulls = dict.fromkeys(("kept", "sample", "question", "finish_reason", "token_ids"))
    path.write_text(json.dumps({"id": 7.0, "completion": "#### 7", **nulls}))
    task = Task("mine", QuestionSet((Question("7", "1 + 6?", "7"),)), QuestionSet((Question("t", "2 + 5?", "7"),)))
    (example,) = read_examples(path, task, load_prompt(folder), vocab_size=10_000)
    assert example.id == "7/0"
    path.write_text('{"id": null, "prompt": "a"}\n{"id": 2.0, "prompt": "b"}')
    assert read_prompts(path) == {"0": "a", "2": "b"}


def test_prompts_are_shown_with_special_tokens(tmp_path: Path) -> None:
    quickstart = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
    shown = "\n".join(show_run_prompts(load_config(quickstart, {"prompt.instruction": "Think."}), 1))
    assert re.fullmatch(
        r"=== gsm_symbolic/train/0: \d+ tokens; .*<end_of_turn>\n<bos><user>.*Think\.<model>", shown, re.DOTALL
    )
    (tmp_path / "prompts.jsonl").write_text('{"id": "sum", "prompt": "2 + 2 ="}\n')
    assert "<bos><user>2 + 2 =<model>" in list(show_file_prompts("quickstart", tmp_path / "prompts.jsonl", 3))
    with pytest.raises(UserError, match=r"prompt\.num_shots \(1\): task gsm_symbolic has 0 worked examples"):
        list(show_run_prompts(load_config(quickstart, {"prompt.num_shots": 1}), 3))


def test_show_prompts_needs_a_config_or_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--show_prompts", "--model", "quickstart"]) == 2
    assert "needs --config FILE, or --model DIR and --prompts" in capsys.readouterr().err


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, GEMMA_LIKE, None])
def test_the_samplers_prompt_is_the_prefix_of_the_training_example(folder: Path, template: str | None) -> None:
    prompt = load_prompt(with_template(folder, template), "Think.")
    prompt.check_contract([QUESTION], 10_000)
    completion = prompt.completion_ids("3 + 4 = 7")
    example = prompt.example(QUESTION.question, completion)
    ids = prompt.prompt_ids(QUESTION.question)
    assert example.tokens[: example.num_prompt] == ids
    assert example.tokens[example.num_prompt :] == (*completion, prompt.end_of_turn)
    assert ids.count(1) == 1  # <bos>
    assert prompt.stop_ids == (4,)  # <end_of_turn>
    assert prompt.text(completion) == "3 + 4 = 7"


def test_sampled_ids_are_trained_on_as_they_are(folder: Path) -> None:
    """A model may write a text in other tokens than the tokenizer would."""
    prompt = load_prompt(folder)
    first, *rest = prompt.completion_ids("3 + 4 = 7")
    by_character = [token for character in "3 + 4 = 7" for token in prompt.completion_ids(character)]
    for sampled in (by_character, [*rest, first], [first, 0, *rest]):  # 0: a special token
        example = prompt.example(QUESTION.question, sampled)
        assert example.tokens[example.num_prompt :] == (*sampled, prompt.end_of_turn)


def test_a_plain_prompt_is_bos_and_the_text(folder: Path) -> None:
    prompt = load_prompt(folder)
    assert prompt.plain_ids("3 + 4 =") == (1, *prompt.completion_ids("3 + 4 ="))  # 1: <bos>


def test_the_end_of_turn_is_the_templates_not_eos(folder: Path) -> None:
    """Gemma's eos_token is <eos>, but its turns end in <end_of_turn>; either stops the sampler."""
    prompt = load_prompt(with_template(folder, GEMMA_LIKE, eos_token="<pad>"), "")
    assert prompt.end_of_turn == 4
    assert prompt.stop_ids == (0, 4)


def test_the_instruction_is_in_every_prompt(folder: Path) -> None:
    prompt = load_prompt(folder, "Think first.")
    assert "Think first." in prompt.text(prompt.prompt_ids("Why?"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ bos_token }}" + CHAT_TEMPLATE, "begins with BOS twice"),
        (CHAT_TEMPLATE.replace("<end_of_turn>", ""), "no special token follows the answer"),
        (CHAT_TEMPLATE.replace("{% if add_generation_prompt %}<model>{% endif %}", ""), "not the prefix"),
    ],
)
def test_a_template_that_breaks_the_contract_is_refused(folder: Path, template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_prompt(with_template(folder, template), "").check_contract([QUESTION], 10_000)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load_prompt(tmp_path, "")


def test_bos_may_also_begin_every_turn(folder: Path) -> None:
    """As in SmolLM2, whose BOS is <|im_start|>."""
    template = CHAT_TEMPLATE.replace("{{ bos_token }}", "").replace("<user>", "<bos><user>").replace("<model>", "<bos>")
    prompt = load_prompt(with_template(folder, template), shots=SHOTS)
    prompt.check_contract([QUESTION], 10_000)
    assert prompt.prompt_ids("?").count(1) == 6


def test_a_prompt_without_bos_is_refused_if_the_tokenizer_would_write_it(folder: Path) -> None:
    path = with_template(folder, CHAT_TEMPLATE.replace("{{ bos_token }}", ""))
    load_prompt(path).check_contract([QUESTION], 10_000)  # this tokenizer never adds BOS itself
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [1], "tokens": ["<bos>"]}},
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"does not begin with BOS \(<bos>\)"):
        load_prompt(path).check_contract([QUESTION], 10_000)


def test_tokens_that_the_model_lacks_are_named(folder: Path) -> None:
    prompt = load_prompt(folder)
    with pytest.raises(UserError, match=r"question 'q' has '<end_of_turn>' \(4\), .* only for ids below 4;"):
        prompt.check_contract([Question("q", "", "7")], 4)


def test_a_tokenizer_that_loses_spaces_is_refused(folder: Path) -> None:
    """As a LLaMA tokenizer class does over a byte-level vocabulary."""
    prompt = load_prompt(folder)
    decode = prompt.tokenizer.decode
    prompt.tokenizer.decode = lambda *args, **options: str(decode(*args, **options)).replace(" ", "")
    with pytest.raises(UserError, match=r"'How many apples', in the prompt of question 'q', becomes 'Howmany"):
        prompt.check_contract([QUESTION], 10_000)


def test_every_declared_end_of_text_stops_the_sampler(folder: Path) -> None:
    """LLaMA 3's generation_config.json names three, its tokenizer only one."""
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 6]}')
    (folder / "config.json").write_text('{"eos_token_id": 7}')
    assert load_prompt(folder).stop_ids == (2, 4, 6, 7)


def test_special_tokens_stay_in_the_text(folder: Path) -> None:
    prompt = load_prompt(folder)
    assert prompt.text([*prompt.completion_ids("4"), 0, *prompt.completion_ids("2")]) == "4<pad>2"


def test_a_prompt_has_its_own_template_and_stop_strings(folder: Path, tmp_path: Path) -> None:
    base = with_template(folder, None)
    prompt = load_prompt(base)
    assert (prompt.is_plain, prompt.stop) == (True, ("Question:",))
    assert load_prompt(with_template(base, CHAT_TEMPLATE)).stop == ()
    assert load_prompt(base, template="plain").prompt_ids("?") == prompt.prompt_ids("?")
    file = tmp_path / "own.jinja"
    file.write_text(PLAIN_TEMPLATE.replace("Question", "Q"))
    quickstart = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
    config = load_config(quickstart, {"prompt.template": str(file), "prompt.stop": "[END]"}).prompt
    assert config.template == file.read_text()  # the run keeps it, whatever happens to the file
    own = load_prompt(base, template=config.template, stop=config.stop)
    assert own.text(own.prompt_ids("3 + 4?")) == "<bos>Q: 3 + 4?\nAnswer:\n"
    assert own.stop == ("END",)
    with pytest.raises(UserError, match=r"prompt\.template \('none\.jinja'\): .*no such file; give a file with"):
        load_config(quickstart, {"prompt.template": "none.jinja"})


def test_the_plain_template_ends_the_completion_with_eos() -> None:
    assert PLAIN_TEMPLATE.count("eos_token") == 1
