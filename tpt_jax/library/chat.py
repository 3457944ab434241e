"""`Chat`: asks a model one question at a time, with the prompt of sampling and training, and streams its answers."""

import collections
import math
import os
from collections.abc import Iterator

import jax
from flax import nnx

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.config import SamplingConfig
from tpt_jax.library.model import Model, load_model
from tpt_jax.library.model import mesh as make_mesh
from tpt_jax.prompts import BROKEN_CHARACTER, Prompt
from tpt_jax.records import Trace
from tpt_jax.terminal import say
from tpt_jax.think.engine import Engine
from tpt_jax.think.requests import Request
from tpt_jax.think.sampler import SamplerProgram
from tpt_jax.think.sampling import Filters
from tpt_jax.think.state import SlotShape
from tpt_jax.think.stop_strings import make_stop_strings

CHUNK_STEPS = 4  # tokens between two looks at what the model has written
SHORTEST_PROMPT = 128  # tokens; programs are compiled for prompts of this length, of twice as much, and so on


def load_chat_model(
    name: str | os.PathLike[str], *, tensor: int | None = None, compute_dtype: str | None = None
) -> Model:
    """Loads a model to ask one question at a time: its weights are split over devices, and batches are not.

    Args:
      name, compute_dtype: as in `load_model`.
      tensor: devices over which each weight is split; as many as the key-value heads divide over if not given.

    Raises:
      UserError: the folder has no model, or there are not as many devices.
    """
    if tensor is None:
        tensor = math.gcd(len(jax.devices()), ModelFolder.open(name).config.num_kv_heads)
    mesh = make_mesh(data=1, fsdp=1, tensor=tensor, devices=jax.devices()[:tensor])
    return load_model(name, mesh=mesh, compute_dtype=compute_dtype)


class Chat:
    """Asks a model; each question is a prompt of its own, as in training: earlier ones are not part of it."""

    def __init__(self, model: Model, prompt: Prompt, settings: SamplingConfig, seed: int = 0):
        """Wraps a model as `load_chat_model` loads it.

        Args:
          settings: how to sample; counts of questions, samples and slots do not matter.

        Raises:
          UserError: a stop string cannot be used with this tokenizer.
        """
        self._model = model
        self._prompt = prompt
        self._settings = settings
        self._seed = seed
        self._stop_strings = make_stop_strings(prompt.stop, prompt.tokenizer, model.folder.config.vocab_size)
        self._weights: tuple[int, SamplerProgram, nnx.State] | None = None  # for prompts of at most this length
        self._num_asked: collections.Counter[str] = collections.Counter()

    def ask(self, question: str, name: str | None = None) -> Iterator[Trace]:
        """Yields the answer as it grows; the last trace is finished.

        Asked again, a question gets its next sample: with the same seed, the same answers as `sample` has.

        Args:
          name: the question's id; its text if not given.

        Raises:
          UserError: the tokenizer cannot encode the question, or the program does not fit in memory.
          FloatingPointError: the model's logits are not finite.
        """
        name = question if name is None else name
        ids = self._prompt.prompt_ids(question)
        program, weights = self._program(len(ids))
        limit = self._settings.max_new_tokens
        request = Request(name, ids, (self._num_asked[name],), (limit,))
        self._num_asked[name] += 1
        engine = Engine(program.slots["sample"], self._prompt, (), 1, self._stop_strings)
        return engine.stream(weights, request, seed=self._seed, temperature=self._settings.temperature)

    def describe(self) -> str:
        """The model and its prompt in a few words."""
        return f"{self._model!r} with {self._prompt.template_name}"

    def settled(self, trace: Trace) -> str:
        """The part of a growing answer that will not change: no half character, nor what may become a stop string."""
        text = trace.completion.rstrip(BROKEN_CHARACTER)
        for size in range(max(map(len, self._prompt.stop), default=1) - 1, 0, -1):
            if any(len(each) > size and text.endswith(each[:size]) for each in self._prompt.stop):
                return text[:-size]
        return text

    def _program(self, num_prompt_tokens: int) -> tuple[SamplerProgram, nnx.State]:
        """The program for prompts of this length, and the weights in its memory layout."""
        if self._weights is None or self._weights[0] < num_prompt_tokens:
            room = SHORTEST_PROMPT
            while room < num_prompt_tokens:
                room *= 2
            self._weights = None  # two copies of the weights may not fit
            say(f"chat: compiling for prompts of up to {room} tokens")
            program = self._model.programs.sampler(self._model, self._shape(room), self._prompt.stop_ids)
            self._weights = (room, program, program.reshards["sample"](self._model.live_parameters()))
        return self._weights[1:]

    def _shape(self, max_prompt_tokens: int) -> SlotShape:
        settings = self._settings
        return SlotShape(
            num_slots=1,
            num_questions=1,
            num_traces=1,
            num_prefix_tokens=0,
            max_prompt_tokens=max_prompt_tokens,
            max_new_tokens=settings.max_new_tokens,
            filters=Filters(settings.top_k, settings.top_p, settings.min_p),
            cache_type=settings.cache_type,
            weights=settings.weights,
            chunk_steps=CHUNK_STEPS,
            num_stop_states=self._stop_strings.num_states if self._stop_strings else 0,
        )
