"""The prompt format: the sampler's prompt is exactly the prefix of the training example.

<bos><start_of_turn>user\\nHow many ...?<end_of_turn>\\n<start_of_turn>model\\n 4 + 3 = 7\\n#### 7 <end_of_turn>
|------------------------------ prompt ------------------------------------|--- completion ---|-- stop ----|
loss on:                                                                      ^^^^^^^^^^^^^^^^  ^^^^^^^^^^^
"""

import dataclasses
import pathlib
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tpt_jax.errors import UserError
from tpt_jax.io.paths import AnyPath, copy, is_remote
from tpt_jax.records import Question, Shot

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The chat template for checkpoints without one (base models).
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}Question: {{ message['content'] }}\n"
    "Answer:\n{% else %}{{ message['content'] }}{{ eos_token if loop.last else '\n\n' }}{% endif %}{% endfor %}"
)
PROBE = "4 + 3 = 7\n#### 7"  # a completion to render through the template
# LLaMA 3's templates put the date into the prompt, by default today's: a run that samples on Monday would train with
# another prompt on Tuesday. This is the templates' own fallback date.
DATE = "26 Jul 2024"


@dataclasses.dataclass(frozen=True)
class Example:
    """One training sequence: prompt, completion and end of turn.

    Attributes:
      tokens: the whole sequence, from BOS to the end of turn.
      num_prompt: length of the prompt, which has no loss.
      id: the trace's id, for messages.
    """

    tokens: tuple[int, ...]
    num_prompt: int
    id: str = ""


class Prompt:
    """Turns questions into token ids and token ids into text, with the checkpoint's chat template if it has one.

    Attributes:
      instruction: follows each question; "" for none.
      end_of_turn: id of the token that ends a completion in the template: trained on, and stops the sampler.
      stop_ids: ids that stop the sampler: the end of turn and EOS.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", instruction: str = "", shots: Sequence[Shot] = ()):
        """Reads the end of turn from the tokenizer's chat template.

        Args:
          instruction: follows each question; "" for none.
          shots: worked examples that precede the question, as turns of the conversation.

        Raises:
          UserError: the template does not end a turn with a special token.
        """
        self.instruction = instruction
        self._shots = tuple(shots)
        self._tokenizer = tokenizer
        self._template = None if tokenizer.chat_template else PLAIN_TEMPLATE
        self.end_of_turn = self._find_end_of_turn()
        eos: Any = tokenizer.eos_token_id
        self.stop_ids: tuple[int, ...] = tuple(sorted({self.end_of_turn, eos} - {None}))

    def prompt_ids(self, question: str) -> tuple[int, ...]:
        """The prompt that the sampler continues."""
        return self._encode(self._render(question, None))

    def plain_ids(self, text: str) -> tuple[int, ...]:
        """A text without chat template, after BOS if the tokenizer has one."""
        bos: Any = self._tokenizer.bos_token_id
        return (*(() if bos is None else (bos,)), *self._encode(text))

    def completion_ids(self, completion: str) -> tuple[int, ...]:
        """Token ids of a completion known only as text."""
        return self._encode(completion)

    def example(self, question: str, completion_ids: Sequence[int], id: str = "") -> Example:
        """A training example with exactly these completion ids: sampled ids are never tokenized again."""
        prompt = self.prompt_ids(question)
        return Example((*prompt, *completion_ids, self.end_of_turn), len(prompt), id)

    def text(self, token_ids: Sequence[int], *, with_special: bool = False) -> str:
        """Decodes token ids; special tokens are left out unless asked for."""
        return str(
            self._tokenizer.decode(
                list(token_ids), skip_special_tokens=not with_special, clean_up_tokenization_spaces=False
            )
        )

    def check_contract(self, questions: Iterable[Question]) -> None:
        """Checks prompts and training examples, token by token, against the chat template's own rendering.

        Raises:
          UserError: they differ, or BOS does not occur exactly once.
        """
        bos: Any = self._tokenizer.bos_token_id
        for question in questions:
            prompt = self.prompt_ids(question.question)
            if bos is not None and prompt.count(bos) != 1:
                raise UserError(
                    f"chat template: the prompt of question {question.id!r} has BOS {prompt.count(bos)} times; "
                    "use a tokenizer whose chat template writes it once"
                )
            example = self.example(question.question, self.completion_ids(PROBE)).tokens
            rendered = self._encode(self._render(question.question, PROBE))
            if rendered[: len(example)] != example:
                raise UserError(
                    f"chat template: the sampler's prompt of question {question.id!r} is not the prefix of its "
                    "training example; use a tokenizer whose chat template renders prompt + answer + end of turn"
                )

    def _find_end_of_turn(self) -> int:
        suffix = self._render("?", PROBE).rpartition(PROBE)[2]
        ids = self._encode(suffix)
        if not ids or ids[0] not in self._special_ids():
            raise UserError(
                f"chat template: no special token follows the answer (found {suffix!r}); "
                "use a tokenizer whose chat template ends a turn with one, like Gemma's <end_of_turn>"
            )
        return ids[0]

    def _special_ids(self) -> set[int]:
        added = {index for index, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        return added | set(self._tokenizer.all_special_ids)

    def _render(self, question: str, completion: str | None) -> str:
        """The conversation as text; without a completion it ends where the model's turn begins."""
        messages: list[dict[str, str]] = []
        turns = [*((shot.question, shot.completion) for shot in self._shots), (question, completion)]
        for asked, answered in turns:
            content = f"{asked}\n{self.instruction}" if self.instruction else asked
            messages.append({"role": "user", "content": content})
            if answered is not None:
                messages.append({"role": "assistant", "content": answered})
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
        # The template writes BOS itself; the tokenizer would add a second one.
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


def load_prompt(model: AnyPath, instruction: str = "", shots: Sequence[Shot] = ()) -> Prompt:
    """The prompt for a checkpoint folder's tokenizer; see Prompt for the instruction and the shots.

    Raises:
      UserError: the folder has no tokenizer, or one whose chat template does not end a turn with a special token.
    """
    if not (model / "tokenizer.json").is_file() and not (model / "tokenizer.model").is_file():
        raise UserError(f"{model}: no tokenizer.json or tokenizer.model; copy the tokenizer's files there")
    with warnings.catch_warnings(action="ignore"):  # in a notebook tqdm asks for widgets that nothing here uses
        from transformers import AutoTokenizer  # takes seconds to import, so only when a model is used

    with tempfile.TemporaryDirectory() as folder:
        if is_remote(model):  # transformers only reads local files
            for path in (path for path in model.iterdir() if path.is_file()):
                copy(path, pathlib.Path(folder) / path.name)
        local = folder if is_remote(model) else str(model)
        return Prompt(AutoTokenizer.from_pretrained(local, local_files_only=True), instruction, shots)
