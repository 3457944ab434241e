"""The tokenizer files of a checkpoint, and the ids that end a text."""

import contextlib
import logging
import os
import pathlib
import tempfile
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tpt_jax.errors import UserError
from tpt_jax.io.downloads import check_downloaded, read_json_object
from tpt_jax.io.paths import AnyPath, copy, is_remote
from tpt_jax.tokenizer.process import ask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A vocabulary is in tokenizer.json, or in older files that transformers converts: sentencepiece's or byte-level BPE's.
VOCABULARY, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
OLDER_VOCABULARIES = ((SENTENCEPIECE,), ("vocab.json", "merges.txt"))
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
# Long runs of one character are where a bad regular expression takes longest.
LONG_RUNS = (character * 64 + "!" for character in "aA1 \n-.é中")
TEXTS_TO_TRY = " ".join(("The answer is 3,072.5 €; it's so.\n\n", *LONG_RUNS))
TOKENIZER_FILES = (
    VOCABULARY,
    SENTENCEPIECE,
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    TEMPLATE_FILE,
    TEMPLATE_FOLDER,
)


def load_tokenizer(folder: AnyPath) -> "PreTrainedTokenizerBase":
    """The tokenizer of a checkpoint folder, on a disk or in a bucket; code in the folder is never run.

    Raises:
      UserError: files are missing or damaged, transformers cannot load them, or they exceed the limits of process.py;
        names the file.
    """
    _check_files(folder)
    with _on_disk(folder) as local, _quiet():
        if (local / VOCABULARY).is_file():
            _try_out(folder, local / VOCABULARY)
        from transformers import AutoTokenizer  # takes seconds to import, so only when a model is used

        try:
            # mistral_format: where mistral-common is installed it would replace tokenizer.json and its template.
            tokenizer = AutoTokenizer.from_pretrained(
                str(local), local_files_only=True, trust_remote_code=False, mistral_format=False
            )
        except Exception as error:  # transformers and tokenizers raise many types, some of them plain Exception
            raise UserError(_reason(folder, error)) from error
    tokenizer.name_or_path = str(folder)
    return tokenizer


def read_eos_ids(folder: AnyPath) -> frozenset[int]:
    """The ids that end a text, by generation_config.json and config.json; empty if neither says.

    Models that chat often name several: the end of a text and that of a turn.

    Raises:
      UserError: a file is damaged, or an id is not a whole number.
    """
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        config = read_json_object(path)
        text_config = config.get("text_config")  # of a model with a vision tower
        for section in (config, text_config if isinstance(text_config, dict) else {}):
            value = section.get("eos_token_id")
            values = value if isinstance(value, list) else [] if value is None else [value]
            if any(type(token) is not int or token < 0 for token in values):
                raise UserError(f"{path}: eos_token_id ({value}) must be a token's id or a list of ids; correct it")
            ids.update(values)
    return frozenset(ids)


def _check_files(folder: AnyPath) -> None:
    """Checks that the folder has a vocabulary, and files that transformers can read: no pointers, devices or pipes."""
    vocabularies = ((VOCABULARY,), *OLDER_VOCABULARIES)
    if not any(all((folder / name).is_file() for name in names) for names in vocabularies):
        raise UserError(
            f"{folder}: no tokenizer.json or tokenizer.model, nor vocab.json with merges.txt; "
            "copy the tokenizer's files there"
        )
    for name in (*TOKENIZER_FILES, "config.json"):
        if (folder / name).is_file():
            check_downloaded(folder / name)


def _try_out(folder: AnyPath, vocabulary: AnyPath) -> None:
    """Loads a tokenizer.json, and encodes texts of many kinds with it, in the process with limits.

    Raises:
      UserError: it exceeds a limit, or crashes. A file that is merely damaged is transformers' to find.
    """
    what = f"{folder / VOCABULARY}: the tokenizer"
    answer = ask(what, {"text": TEXTS_TO_TRY, "tokenizer": os.fspath(vocabulary), "reload": True})
    if answer.get("panic"):
        raise UserError(f"{what}: cannot encode a text ({answer['error']}); use another")


@contextlib.contextmanager
def _on_disk(folder: AnyPath) -> Iterator[AnyPath]:
    """The folder itself, or a temporary copy of what a tokenizer needs of it: transformers only reads local files."""
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as local:
        for name in (*TOKENIZER_FILES, "config.json"):
            if (folder / name).exists():
                copy(folder / name, pathlib.Path(local) / name)
        yield pathlib.Path(local)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings: in a notebook tqdm asks for widgets that nothing uses; transformers tells how it converts."""
    with warnings.catch_warnings(action="ignore"):
        from transformers.utils import logging as messages

        verbosity = messages.get_verbosity()
        messages.set_verbosity(logging.CRITICAL)
        try:
            yield
        finally:
            messages.set_verbosity(verbosity)


def _reason(folder: AnyPath, error: Exception) -> str:
    """Why transformers could not load the tokenizer, in one line.

    Raises:
      UserError: a JSON file is damaged.
    """
    names = [name for name in TOKENIZER_FILES if name.endswith(".json") and (folder / name).is_file()]
    files = {name: read_json_object(folder / name) for name in names}
    config = files.get("tokenizer_config.json", {})
    if config.get("auto_map"):
        return (
            f"{folder / 'tokenizer_config.json'}: {config.get('tokenizer_class')} is code in the folder (auto_map), "
            "which is never run; give a tokenizer.json and a tokenizer_class of transformers"
        )
    fault = _vocabulary_fault(folder / VOCABULARY) if VOCABULARY in files else None
    if fault is not None:
        kind = (files[VOCABULARY].get("model") or {}).get("type")
        return (
            f"{folder / VOCABULARY}: cannot be read (model type {kind}: {fault}); download it again, or update: "
            "pip install -U transformers tokenizers"
        )
    if VOCABULARY not in files and (folder / SENTENCEPIECE).is_file():
        return (
            f"{folder / SENTENCEPIECE}: is not a whole sentencepiece model; download it again, or copy the "
            f"{VOCABULARY} that is published with the model"
        )
    return f"{folder}: transformers cannot load the tokenizer ({_first_line(error)}); correct tokenizer_config.json"


def _vocabulary_fault(path: AnyPath) -> str | None:
    """Why the tokenizers library cannot read a tokenizer.json; None if it can."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises no other type
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()[:200]
