"""The one prompt: what the sampler reads is exactly the start of what training reads.

<bos><start_of_turn>user\\nHow many ...?<end_of_turn>\\n<start_of_turn>model\\n 4 + 3 = 7\\n#### 7 <end_of_turn>
|------------------------------ prompt ------------------------------------|--- completion ---|-- stop ----|
loss on:                                                                      ^^^^^^^^^^^^^^^^  ^^^^^^^^^^^
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tpt_jax.errors import UserError
from tpt_jax.io.paths import AnyPath, copy, is_remote
from tpt_jax.records import Question, Shot

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# For checkpoints without a chat template (base models).
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}Question: {{ message['content'] }}\n"
    "Answer:\n{% else %}{{ message['content'] }}{{ eos_token if loop.last else '\n\n' }}{% endif %}{% endfor %}"
)
PROBE = "4 + 3 = 7\n#### 7"
# LLaMA 3's templates tell the model the date, today's if none is given: a run would train on Tuesday under another
# prompt than it sampled under on Monday. This is the one that they fall back on themselves.
DATE = "26 Jul 2024"


@dataclasses.dataclass(frozen=True)
class Example:
    """One training sequence: a prompt, its completion and the end of turn.

    Attributes:
      tokens: all of them, BOS first, end of turn last.
      num_prompt: how many of them are prompt, on which there is no loss.
      id: of the trace, for messages.
    """

    tokens: tuple[int, ...]
    num_prompt: int
    id: str = ""


class Prompt:
    """Turns questions into token ids and token ids into text, by the checkpoint's own chat template where it has one.

    Raises:
      UserError: the template breaks the contract: BOS once, the prompt a prefix of the example, an end-of-turn token.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", instruction: str = "", shots: Sequence[Shot] = ()):
        """Of a tokenizer.

        Args:
          instruction: stands after each question; "" for none.
          shots: examples that stand before the question, as turns of their own.
        """
        self.instruction = instruction
        self._shots = tuple(shots)
        self._tokenizer = tokenizer
        self._template = None if tokenizer.chat_template else PLAIN_TEMPLATE
        self.end_of_turn = self._find_end_of_turn()
        eos: Any = tokenizer.eos_token_id
        pad: Any = tokenizer.pad_token_id
        self.stop_ids: tuple[int, ...] = tuple(sorted({self.end_of_turn, eos} - {None}))
        self.pad_id: int = 0 if pad is None else pad

    def prompt_ids(self, question: str) -> tuple[int, ...]:
        """What the sampler continues."""
        return self._encode(self._render(question, None))

    def plain_ids(self, text: str) -> tuple[int, ...]:
        """A text to continue as it stands, after BOS where the tokenizer has one."""
        bos: Any = self._tokenizer.bos_token_id
        return (*(() if bos is None else (bos,)), *self._encode(text))

    def completion_ids(self, completion: str) -> tuple[int, ...]:
        """Token ids of a completion known only as text."""
        return self._encode(completion)

    def example(self, question: str, completion_ids: Sequence[int], id: str = "") -> Example:
        """A training sequence; given the ids that were sampled, it is trained on those very ids."""
        prompt = self.prompt_ids(question)
        return Example((*prompt, *completion_ids, self.end_of_turn), len(prompt), id)

    def text(self, token_ids: Sequence[int], *, with_special: bool = False) -> str:
        """What token ids stand for, special tokens left out unless they are asked for."""
        return str(
            self._tokenizer.decode(
                list(token_ids), skip_special_tokens=not with_special, clean_up_tokenization_spaces=False
            )
        )

    def check_contract(self, questions: Iterable[Question]) -> None:
        """Compares sampler's prompt and training example with the chat template's own rendering, token by token.

        Raises:
          UserError: they differ, or BOS does not stand exactly once.
        """
        bos: Any = self._tokenizer.bos_token_id
        for question in questions:
            prompt = self.prompt_ids(question.question)
            if bos is not None and prompt.count(bos) != 1:
                raise UserError(
                    f"chat template: the prompt of question {question.id!r} has BOS {prompt.count(bos)} times; "
                    "give a tokenizer whose chat template writes it once"
                )
            example = self.example(question.question, self.completion_ids(PROBE)).tokens
            rendered = self._encode(self._render(question.question, PROBE))
            if rendered[: len(example)] != example:
                raise UserError(
                    f"chat template: the sampler's prompt of question {question.id!r} is not the prefix of its "
                    "training example; give a tokenizer whose chat template renders prompt + answer + end of turn"
                )

    def _find_end_of_turn(self) -> int:
        after = self._render("?", PROBE).rpartition(PROBE)[2]
        ids = self._encode(after)
        if not ids or ids[0] not in self._special_ids():
            raise UserError(
                f"chat template: no special token follows the answer (found {after!r}); "
                "give a tokenizer whose chat template ends a turn with one, as Gemma's <end_of_turn>"
            )
        return ids[0]

    def _special_ids(self) -> set[int]:
        added = {index for index, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        return added | set(self._tokenizer.all_special_ids)

    def _render(self, question: str, completion: str | None) -> str:
        messages: list[dict[str, str]] = []
        for text, answer in (*((shot.question, shot.completion) for shot in self._shots), (question, completion)):
            content = f"{text}\n{self.instruction}" if self.instruction else text
            messages.append({"role": "user", "content": content})
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        return str(
            self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=completion is None,
                date_string=DATE,
            )
        )

    def _encode(self, text: str) -> tuple[int, ...]:
        # The template writes BOS itself; asking the tokenizer for special tokens would write a second one.
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


def load_prompt(model: AnyPath, instruction: str = "", shots: Sequence[Shot] = ()) -> Prompt:
    """The prompt of a checkpoint folder; instruction and shots as Prompt has them.

    Raises:
      UserError: the folder holds no tokenizer.
    """
    if not (model / "tokenizer.json").is_file() and not (model / "tokenizer.model").is_file():
        raise UserError(f"{model}: no tokenizer.json or tokenizer.model; copy the tokenizer's files beside config.json")
    from transformers import AutoTokenizer  # seconds to import: only when a model is used

    with tempfile.TemporaryDirectory() as folder:
        if is_remote(model):  # transformers reads from disks only
            for path in (path for path in model.iterdir() if path.is_file()):
                copy(path, pathlib.Path(folder) / path.name)
        near = folder if is_remote(model) else str(model)
        return Prompt(AutoTokenizer.from_pretrained(near, local_files_only=True), instruction, shots)
