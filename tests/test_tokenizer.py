"""Tokenizer files: each kind loads and gives the ids of the library that made it, each damage is one line."""

import io
import json
import logging
import re
import shutil
from collections.abc import Callable
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import pytest

from tpt_jax.errors import UserError
from tpt_jax.quickstart.corpus import Text
from tpt_jax.quickstart.make_base import write_tokenizer
from tpt_jax.tokenizer import load_tokenizer, read_eos_ids, render

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 17477929\n"
TEXT = "Tom has 3 apples and buys 14 more.\n  How many apples does he have?\n#### 17, café"
MESSAGES = [{"role": "user", "content": "How many?"}]


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text()) | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A byte-level tokenizer.json with its tokenizer_config.json, of a LLaMA."""
    write_tokenizer(tmp_path, [Text("How many apples are 3 apples and 4 apples?", "3 + 4 = 7\n#### 7")])
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    return tmp_path


# Kinds of files that load


def write_sentencepiece(folder: Path, **options: Any) -> Any:
    """Trains a tokenizer.model, and nothing else; returns sentencepiece's own processor of it."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter([*TEXT.splitlines(), "4 + 3 = 7"] * 20),
        model_writer=model,
        vocab_size=330,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        **options,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


LLAMA_PIECES = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "unk_piece": "<unk>", "bos_piece": "<s>", "eos_piece": "</s>"}
GEMMA_PIECES = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "eos_piece": "<eos>", "bos_piece": "<bos>"}
GEMMA_PIECES |= {"user_defined_symbols": ["<start_of_turn>", "<end_of_turn>"], "add_dummy_prefix": False}


@pytest.mark.parametrize("has_config", [True, False])
@pytest.mark.parametrize(
    ("model_type", "tokenizer_class", "pieces"),
    [("llama", "LlamaTokenizer", LLAMA_PIECES), ("gemma2", "GemmaTokenizer", GEMMA_PIECES)],
)
def test_a_sentencepiece_model_alone(
    tmp_path: Path, model_type: str, tokenizer_class: str, pieces: dict[str, Any], has_config: bool
) -> None:
    reference = write_sentencepiece(tmp_path, **pieces)
    write_json(tmp_path / "config.json", {"model_type": model_type})
    if has_config:
        write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": tokenizer_class})
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (reference.bos_id(), reference.eos_id())
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert ids == reference.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    for symbol in pieces.get("user_defined_symbols", []):
        assert tokenizer.encode(symbol, add_special_tokens=False) == [reference.piece_to_id(symbol)]


def test_vocab_json_and_merges(folder: Path) -> None:
    """GPT's files, which Qwen publishes too."""
    expected = load_tokenizer(folder).encode(TEXT, add_special_tokens=False)
    whole = json.loads((folder / "tokenizer.json").read_text())
    write_json(folder / "vocab.json", whole["model"]["vocab"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, whole["model"]["merges"])]))
    write_json(folder / "added_tokens.json", {token["content"]: token["id"] for token in whole["added_tokens"]})
    (folder / "tokenizer.json").unlink()
    change_config(folder, tokenizer_class="GPT2Tokenizer")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode(TEXT, add_special_tokens=False) == expected
    assert tokenizer.decode(expected) == TEXT


def test_a_llama_class_over_a_byte_level_vocabulary_keeps_spaces(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """LLaMA 3's own arrangement; what transformers has to say about it does not concern the user."""
    change_config(folder, tokenizer_class="LlamaTokenizerFast")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=False)) == TEXT
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tokens", [["<image>"], {"image_token": "<image>"}])
def test_extra_special_tokens(folder: Path, tokens: Any) -> None:
    change_config(folder, extra_special_tokens=tokens)
    assert load_tokenizer(folder).convert_tokens_to_ids("<image>") is not None


# Damaged files


def damage(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def settings(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **changes)


def cut_off(folder: Path) -> None:
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:1000])


def unknown_model(folder: Path) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text())
    write_json(folder / "tokenizer.json", whole | {"model": {"type": "FancyBPE2", "vocab": {}}})


def no_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("{}")


def cut_sentencepiece(folder: Path) -> None:
    write_sentencepiece(folder, **LLAMA_PIECES)
    path = folder / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:700])
    (folder / "tokenizer.json").unlink()


def merges_pointer(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    (folder / "merges.txt").write_text(LFS_POINTER)


CODE = {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": ["my_tokenizer.MyTokenizer", None]}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (no_vocabulary, ["no tokenizer.json or tokenizer.model", "merges.txt"]),
        (damage("tokenizer.json", LFS_POINTER), ["/tokenizer.json: ", "git lfs pull"]),
        (damage("tokenizer.json", ""), ["/tokenizer.json: ", "is empty"]),
        (cut_off, ["/tokenizer.json: not JSON"]),
        (damage("tokenizer.json", "{}"), ["/tokenizer.json: cannot be read"]),
        (unknown_model, ["/tokenizer.json: ", "FancyBPE2", "pip install -U"]),
        (cut_sentencepiece, ["/tokenizer.model: is not a whole sentencepiece model"]),
        (merges_pointer, ["/merges.txt: ", "git lfs pull"]),
        (damage("tokenizer_config.json", '{"bos_token": '), ["/tokenizer_config.json: not JSON"]),
        (damage("tokenizer_config.json", "[]"), ["/tokenizer_config.json: must be a JSON object"]),
        (damage("special_tokens_map.json", "{"), ["/special_tokens_map.json: not JSON"]),
        (damage("added_tokens.json", "{"), ["/added_tokens.json: not JSON"]),
        (damage("chat_template.jinja", LFS_POINTER), ["/chat_template.jinja: ", "git lfs pull"]),
        (settings(**CODE), ["/tokenizer_config.json: MyTokenizer is code", "never run"]),
        (settings(eos_token=5), ["eos_token", "correct tokenizer_config.json"]),
        (settings(chat_template=["x"]), ["correct tokenizer_config.json"]),
    ],
)
def test_damage_is_one_line_that_names_the_file(
    folder: Path, change: Callable[[Path], None], words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    change(folder)
    with pytest.raises(UserError, match=re.escape(str(folder))) as error:
        load_tokenizer(folder)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_warnings_of_transformers_are_not_shown(folder: Path) -> None:
    """Of a damaged sentencepiece model it says that it tries another format."""
    handler = BufferingHandler(capacity=100)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    level = logger.level
    cut_sentencepiece(folder)
    try:
        with pytest.raises(UserError):
            load_tokenizer(folder)
    finally:
        logger.removeHandler(handler)
    assert not handler.buffer
    assert logger.level == level  # other uses of transformers in the process keep their warnings


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    (folder / "my_tokenizer.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    change_config(folder, **CODE)
    with pytest.raises(UserError):
        load_tokenizer(folder)
    change_config(folder, tokenizer_class="PreTrainedTokenizerFast")  # transformers has it, so the code is not needed
    load_tokenizer(folder)
    assert not (folder / "ran").exists()


# Chat templates


def test_a_template_in_a_file_precedes_the_config(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}{{ end }}")
    assert render(load_tokenizer(folder), MESSAGES, end="!") == "[How many?]!"


def test_the_default_of_several_templates(folder: Path) -> None:
    templates = [{"name": "rag", "template": "x"}, {"name": "default", "template": "{{ messages[0].content }}"}]
    change_config(folder, chat_template=templates)
    assert render(load_tokenizer(folder), MESSAGES) == "How many?"
    assert render(load_tokenizer(folder), MESSAGES, "{{ messages[0].role }}") == "user"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}\n{{ m['content'] }\n{% endfor %}", ["line 2", "unexpected '}'"]),
        ("{% for m in messages %}", ["line 1", "Unexpected end of template"]),
        ("{{ raise_exception('a system message\nis needed') }}", ["refuses the conversation: a system message"]),
        ("{{ messages[3]['content'] }}", ["has no element 3"]),
        ("{{ messages + 1 }}", ["TypeError"]),
        ([{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "x"}], ["only rag, tool_use", "default"]),
        (5, ["TypeError"]),
    ],
)
def test_a_template_that_fails_is_one_line(folder: Path, template: Any, words: list[str]) -> None:
    change_config(folder, chat_template=template)
    with pytest.raises(UserError, match=r"tokenizer_config\.json: chat template: .*prompt\.template") as error:
        render(load_tokenizer(folder), MESSAGES)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_the_message_says_which_template_failed(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ }}")
    with pytest.raises(UserError, match=r"chat_template\.jinja: chat template: line 1"):
        render(load_tokenizer(folder), MESSAGES)
    with pytest.raises(UserError, match=r"^prompt\.template: line 1: .*; correct it$"):
        render(load_tokenizer(folder), MESSAGES, "{% if %}")


# Ids that end a text


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, {}, []),
        ({"eos_token_id": [128001, 128008, 128009]}, {"eos_token_id": 128001}, [128001, 128008, 128009]),
        ({"eos_token_id": None}, {"eos_token_id": 2, "text_config": {"eos_token_id": [1, 106]}}, [1, 2, 106]),
        ({}, {"text_config": None}, []),
    ],
)
def test_ids_that_end_a_text(tmp_path: Path, generation: Any, config: Any, expected: list[int]) -> None:
    write_json(tmp_path / "config.json", config)
    if generation is not None:
        write_json(tmp_path / "generation_config.json", generation)
    assert sorted(read_eos_ids(tmp_path)) == expected


@pytest.mark.parametrize("value", ["2", [1, None], -1, 2.0, True, {"id": 2}])
def test_ids_that_are_not_numbers(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "generation_config.json", {"eos_token_id": value})
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id \(.*\) must be"):
        read_eos_ids(tmp_path)


def test_a_damaged_generation_config(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(LFS_POINTER)
    with pytest.raises(UserError, match=r"generation_config\.json: .*git lfs pull"):
        read_eos_ids(tmp_path)


def test_a_tokenizer_in_a_bucket(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the tokenizer needs is copied to the disk."""
    (folder / "model.safetensors").write_text("weights")
    copied: list[str] = []
    copy = shutil.copy

    def record(source: Any, target: Path) -> None:
        copied.append(target.name)
        copy(source, target)

    monkeypatch.setattr("tpt_jax.tokenizer.files.is_remote", lambda path: True)
    monkeypatch.setattr("tpt_jax.tokenizer.files.copy", record)
    tokenizer = load_tokenizer(folder)
    assert sorted(copied) == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert tokenizer.name_or_path == str(folder)
