"""The prompt format: the sampler's prompt is exactly the prefix of the training example.

<bos><start_of_turn>user\\nHow many ...?<end_of_turn>\\n<start_of_turn>model\\n 4 + 3 = 7\\n#### 7 <end_of_turn>
|------------------------------ prompt ------------------------------------|--- completion ---|-- stop ----|
loss on:                                                                      ^^^^^^^^^^^^^^^^  ^^^^^^^^^^^
"""

import dataclasses
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tpt_jax.config import PLAIN_TEMPLATE_NAME
from tpt_jax.errors import UserError
from tpt_jax.io.paths import AnyPath
from tpt_jax.records import Question, Shot
from tpt_jax.tokenizer import encode, load_tokenizer, read_eos_ids, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The chat template for checkpoints without one (base models).
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}Question: {{ message['content'] }}\n"
    "Answer:\n{% else %}{{ message['content'] }}{{ eos_token if loop.last else '\n\n' }}{% endif %}{% endfor %}"
)
PLAIN_STOP = ("Question:",)  # a base model that has answered goes on with a question of its own
PROBE = "4 + 3 = 7\n#### 7"  # a completion to render through the template
BROKEN_CHARACTER = "\ufffd"  # at the end of a text whose last token ends inside a character
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
    """Turns questions into token ids and token ids into text.

    Attributes:
      instruction: follows each question; "" for none.
      tokenizer: the checkpoint's own.
      is_plain: whether questions are asked with PLAIN_TEMPLATE.
      stop: texts before which a completion ends.
      end_of_turn: id of the token that ends a completion in the template: trained on, and stops the sampler.
      stop_ids: ids that stop the sampler: the end of turn, and all that the checkpoint declares to end a text.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        instruction: str = "",
        shots: Sequence[Shot] = (),
        *,
        template: str | None = None,
        stop: Sequence[str] | None = None,
        eos_ids: Iterable[int] = (),
    ):
        """Reads the end of turn from the chat template.

        Args:
          instruction: follows each question; "" for none.
          shots: worked examples that precede the question, as turns of the conversation.
          template: a Jinja chat template, or "plain"; the tokenizer's own if not given, or plain if it has none.
          stop: texts before which a completion ends; if not given, the next "Question:" with the plain template, and
            none with others.
          eos_ids: ids that end a text, besides the tokenizer's EOS.

        Raises:
          UserError: the template cannot be rendered, or does not end a turn with a special token.
        """
        self.instruction = instruction
        self._shots = tuple(shots)
        self.tokenizer = tokenizer
        self._special_tokens = _special_tokens(tokenizer)
        self.is_plain = template == PLAIN_TEMPLATE_NAME or (template is None and not tokenizer.chat_template)
        self._template = PLAIN_TEMPLATE if self.is_plain else template
        self.stop = tuple(stop) if stop is not None else PLAIN_STOP if self.is_plain else ()
        self.end_of_turn = self._find_end_of_turn()
        eos: Any = tokenizer.eos_token_id
        self.stop_ids: tuple[int, ...] = tuple(sorted({self.end_of_turn, eos, *eos_ids} - {None}))

    @property
    def template_name(self) -> str:
        """The template in a few words, for messages."""
        if self.is_plain:
            return 'the plain template ("Question: ... Answer:")'
        return "the checkpoint's chat template" if self._template is None else "your template"

    def prompt_ids(self, question: str) -> tuple[int, ...]:
        """The prompt that the sampler continues."""
        return self._encode(self._render(question, None))

    def plain_ids(self, text: str) -> tuple[int, ...]:
        """A text without chat template, after BOS if the tokenizer has one."""
        bos: Any = self.tokenizer.bos_token_id
        return (*(() if bos is None else (bos,)), *encode(self.tokenizer, text))

    def completion_ids(self, completion: str) -> tuple[int, ...]:
        """Token ids of a completion known only as text.

        Raises:
          UserError: the tokenizer cannot encode it.
        """
        return encode(self.tokenizer, completion)

    def example(self, question: str, completion_ids: Sequence[int], id: str = "") -> Example:
        """A training example with exactly these completion ids: sampled ids are never tokenized again."""
        prompt = self.prompt_ids(question)
        return Example((*prompt, *completion_ids, self.end_of_turn), len(prompt), id)

    def text(self, token_ids: Sequence[int]) -> str:
        """Decodes token ids, special tokens included: left out, "42<eos>195" would become another number."""
        return str(self.tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False))

    def token_ends(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Where each token ends in the text of all, in characters; one that ends inside a character, before it.

        Decodes each token after the few before it: 20 microseconds a token.
        """
        ends: list[int] = []
        start = read = end = 0  # token_ids[:read] have the length `end`; the next ones are decoded after [start:read]
        for index in range(len(token_ids)):
            text, before = self.text(token_ids[start : index + 1]), len(self.text(token_ids[start:read]))
            whole = text.rstrip(BROKEN_CHARACTER)
            ends.append(max(end, end + len(whole) - before))
            if whole == text:
                end += len(text) - before
                start, read = read, index + 1
        return (*ends[:-1], len(self.text(token_ids))) if ends else ()

    def is_faithful(self, question: str, completion: str) -> bool:
        """Whether the example of a completion known as text is what the chat template renders, token by token."""
        example = self.example(question, self.completion_ids(completion)).tokens
        return self._encode(self._render(question, completion))[: len(example)] == example

    def check_contract(self, questions: Iterable[Question], vocab_size: int) -> None:
        """Checks prompts and training examples, token by token, against the chat template's own rendering.

        Args:
          vocab_size: rows of the model's embedding table.

        Raises:
          UserError: they differ; BOS is missing or doubled; the model lacks a token; or the tokenizer loses text.
        """
        for question in questions:
            rendered = self._render(question.question, None)
            prompt = self._encode(rendered)
            self._check_bos(question, prompt)
            self._check_vocabulary(question, (*prompt, self.end_of_turn), vocab_size)
            self._check_text(question, rendered, prompt)
            if not self.is_faithful(question.question, PROBE):
                raise UserError(
                    f"chat template: the sampler's prompt of question {question.id!r} is not the prefix of its "
                    "training example; use a tokenizer whose chat template renders prompt + answer + end of turn, or "
                    "set prompt.template"
                )

    def _check_bos(self, question: Question, prompt: tuple[int, ...]) -> None:
        """BOS may also occur later: in some templates it begins every turn."""
        bos: Any = self.tokenizer.bos_token_id
        if bos is None:
            return
        if prompt[:2] == (bos, bos):
            raise UserError(
                f"chat template: the prompt of question {question.id!r} begins with BOS twice; "
                "use a template that writes it once"
            )
        is_expected = list(self.tokenizer.encode("?"))[:1] == [bos]
        if is_expected and prompt[:1] != (bos,):
            raise UserError(
                f"chat template: the prompt of question {question.id!r} does not begin with BOS "
                f"({self.tokenizer.bos_token}), as this model's texts do; use one that writes {{{{ bos_token }}}} first"
            )

    def _check_vocabulary(self, question: Question, ids: Sequence[int], vocab_size: int) -> None:
        unknown = sorted({token for token in ids if token >= vocab_size})
        if unknown:
            names = ", ".join(f"{self.text([token])!r} ({token})" for token in unknown[:5])
            raise UserError(
                f"tokenizer: the prompt of question {question.id!r} has {names}, but the model has embeddings only for "
                f"ids below {vocab_size}; resize its embeddings, or set prompt.template to one without such tokens"
            )

    def _check_text(self, question: Question, rendered: str, prompt: tuple[int, ...]) -> None:
        """Tokenizer files that do not belong to their class can lose spaces or lines without an error."""
        read, written = self._words(self.text(prompt)), self._words(rendered)
        if read != written:
            index = next((i for i, (a, b) in enumerate(zip(read, written, strict=False)) if a != b), len(written) - 1)
            raise UserError(
                f"tokenizer: {' '.join(written[index : index + 3])!r}, in the prompt of question {question.id!r}, "
                f"becomes {' '.join(read[index : index + 3])!r:.60}; the tokenizer's files do not fit its class "
                f"({type(self.tokenizer).__name__}): take them from the model's publisher, or set tokenizer_class in "
                "tokenizer_config.json to PreTrainedTokenizerFast"
            )

    def _words(self, text: str) -> list[str]:
        """Tokenizers may normalise characters, and put spaces around special tokens."""
        for token in self._special_tokens:
            text = text.replace(token, f" {token} ")
        return unicodedata.normalize("NFKC", text).split()

    def _find_end_of_turn(self) -> int:
        suffix = self._render("?", PROBE).rpartition(PROBE)[2]
        ids = encode(self.tokenizer, suffix)
        if not ids or ids[0] not in self._special_tokens.values():
            raise UserError(
                f"chat template: no special token follows the answer (found {suffix!r}); "
                "use a template that ends a turn with one, like Gemma's <end_of_turn>"
            )
        return ids[0]

    def _render(self, question: str, completion: str | None) -> str:
        """The conversation as text; without a completion it ends where the model's turn begins."""
        messages: list[dict[str, str]] = []
        turns = [*((shot.question, shot.completion) for shot in self._shots), (question, completion)]
        for asked, answered in turns:
            content = f"{asked}\n{self.instruction}" if self.instruction else asked
            messages.append({"role": "user", "content": content})
            if answered is not None:
                messages.append({"role": "assistant", "content": answered})
        return render(
            self.tokenizer,
            messages,
            self._template,
            add_generation_prompt=completion is None,
            date_string=DATE,
            enable_thinking=False,  # Qwen3 and SmolLM3: an answer without a thinking part, as it is trained on
        )

    def _encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text that `_render` has returned, so that it has been encoded under limits."""
        # The template writes BOS itself; the tokenizer would add a second one.
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))


def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Ids by text; there can be thousands, so read once."""
    added = tokenizer.added_tokens_decoder.items()
    special = {token.content: index for index, token in added if token.special}
    return special | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def load_prompt(
    model: AnyPath,
    instruction: str = "",
    shots: Sequence[Shot] = (),
    *,
    template: str | None = None,
    stop: Sequence[str] | None = None,
) -> Prompt:
    """The prompt for a checkpoint folder's tokenizer; see Prompt for the arguments.

    Raises:
      UserError: the folder has no usable tokenizer, or its chat template does not end a turn with a special token.
    """
    tokenizer = load_tokenizer(model)
    return Prompt(tokenizer, instruction, shots, template=template, stop=stop, eos_ids=read_eos_ids(model))
