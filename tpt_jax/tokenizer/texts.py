"""Conversations as text and texts as token ids: both under limits, since a model folder's files are not trusted."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tpt_jax.errors import UserError
from tpt_jax.tokenizer.files import TEMPLATE_FILE, VOCABULARY
from tpt_jax.tokenizer.process import Answer, ask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, str]],
    template: str | None = None,
    **options: Any,
) -> str:
    """A conversation as text, which the tokenizer can encode within the limits of process.py.

    Args:
      messages: each with "role" and "content".
      template: a Jinja chat template; the tokenizer's own if not given.
      options: variables for the template.

    Raises:
      UserError: the template is not valid, exceeds a limit, or refuses the conversation; or several have names, and
        none is the default; or the tokenizer exceeds a limit, or cannot encode the text.
    """
    where, fix = "prompt.template", "correct it"
    if template is None:
        where, fix = f"{_template_file(tokenizer)}: chat template", "correct it, or set prompt.template"
        own: Any = tokenizer.chat_template
        if isinstance(own, dict) and "default" not in own:
            raise UserError(
                f'{where}: there are only {", ".join(sorted(own))}, none named "default"; set prompt.template'
            )
    variables = {
        **{name: _plain(value) for name, value in tokenizer.special_tokens_map.items()},
        "tools": None,
        "documents": None,
        **options,
        "messages": [dict(message) for message in messages],
    }
    answer = ask(
        where, {"template": tokenizer.get_chat_template(template), "variables": variables, **_encoder(tokenizer)}
    )
    if answer.get("of") == "template":
        line = f"line {answer['line']}: " if "line" in answer else ""
        raise UserError(f"{where}: {line}{answer['error']}; {fix}")
    return _checked(tokenizer, answer)


def encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[int, ...]:
    """The token ids of a text, without BOS.

    Raises:
      UserError: the tokenizer exceeds a limit of process.py, or cannot encode the text.
    """
    encoder = _encoder(tokenizer)
    if encoder:
        _checked(tokenizer, ask(f"{tokenizer.name_or_path}: the tokenizer", {"text": text, **encoder}))
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _encoder(tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """What tells the process to encode the text too; nothing for a folder without a tokenizer.json on a disk."""
    path = os.path.join(tokenizer.name_or_path, VOCABULARY)  # no Path: this is done for every text
    return {"tokenizer": path} if os.path.isfile(path) else {}


def _checked(tokenizer: "PreTrainedTokenizerBase", answer: Answer) -> str:
    if "error" in answer:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer cannot encode a text ({answer['error']}); use another"
        )
    return answer["text"]


def _plain(value: Any) -> Any:
    """A special token, or a list of them, as text."""
    return [str(each) for each in value] if isinstance(value, list | tuple) else str(value)


def _template_file(tokenizer: "PreTrainedTokenizerBase") -> str:
    path = os.path.join(tokenizer.name_or_path, TEMPLATE_FILE)
    return path if os.path.isfile(path) else os.path.join(tokenizer.name_or_path, "tokenizer_config.json")
