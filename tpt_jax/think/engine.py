"""The sampler's host side: questions in, finished traces out, batch by batch, the device always one batch ahead."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from flax import nnx

from tpt_jax.config import SamplingConfig
from tpt_jax.program import SamplerProgram
from tpt_jax.prompts import Prompt
from tpt_jax.records import Question, Trace
from tpt_jax.think.generate import BatchShape, Completions, Request
from tpt_jax.think.sampling import question_number


def batch_shape(config: SamplingConfig) -> BatchShape:
    """The shape that a sampling config is compiled for; batch_size is rounded down to whole questions, at least one."""
    return BatchShape(
        num_prompts=max(1, config.batch_size // config.num_samples),
        num_samples=config.num_samples,
        max_prompt_tokens=config.max_prompt_tokens,
        max_new_tokens=config.max_new_tokens,
    )


def fits(prompt: Prompt, question: Question, config: SamplingConfig) -> bool:
    """Whether a question's prompt is at most max_prompt_tokens long; none is ever cut."""
    return len(prompt.prompt_ids(question.question)) <= config.max_prompt_tokens


@dataclasses.dataclass(frozen=True)
class SampledBatch:
    """The finished traces of one batch of questions; `index` counts the batches of a phase."""

    index: int
    questions: tuple[Question, ...]
    traces: tuple[Trace, ...]


class Engine:
    """Samples traces of questions. A trace depends on (seed, round, question, sample), not on its batch."""

    def __init__(self, program: SamplerProgram, prompt: Prompt, config: SamplingConfig):
        self._program = program
        self._prompt = prompt
        self._config = config
        self._shape = batch_shape(config)
        self._generate = program.generate[self._shape]

    def num_batches(self, questions: Sequence[Question]) -> int:
        return -(-len(questions) // self._shape.num_prompts)

    def sample(
        self,
        parameters: nnx.State,
        questions: Sequence[Question],
        *,
        seed: int,
        round_index: int,
        skip: Collection[int] = (),
    ) -> Iterator[SampledBatch]:
        """Yields the batches in order, except those in `skip`.

        Args:
          parameters: laid out for decoding.
          questions: that fit.
        """
        # The next batch is dispatched before the last one is fetched, so the device does not wait for Python.
        running: tuple[int, Sequence[Question], Completions] | None = None
        for index in range(self.num_batches(questions)):
            if index in skip:
                continue
            asked = questions[index * self._shape.num_prompts :][: self._shape.num_prompts]
            request = self._program.place(self._request(asked, seed, round_index))
            started = (index, asked, self._generate(parameters, request))
            if running is not None:
                yield self._collect(*running)
            running = started
        if running is not None:
            yield self._collect(*running)

    def _request(self, questions: Sequence[Question], seed: int, round_index: int) -> Request:
        prompts = np.full((self._shape.num_prompts, self._shape.max_prompt_tokens), self._prompt.pad_id, np.int32)
        lengths = np.zeros(self._shape.num_prompts, np.int32)
        numbers = np.zeros(self._shape.num_prompts, np.uint32)
        for row, question in enumerate(questions):
            ids = self._prompt.prompt_ids(question.question)
            prompts[row, -len(ids) :] = ids
            lengths[row] = len(ids)
            numbers[row] = question_number(question.id)
        arrays: dict[str, Any] = {
            "prompts": prompts,
            "prompt_lengths": lengths,
            "questions": numbers,
            "seed": np.uint32(seed),
            "round_index": np.uint32(round_index),
            "temperature": np.float32(self._config.temperature),
        }
        return Request(**arrays)

    def _collect(self, index: int, questions: Sequence[Question], completions: Completions) -> SampledBatch:
        """Fetches a batch from the device (the only transfer) and makes traces of it."""
        tokens, lengths = np.asarray(completions.tokens), np.asarray(completions.lengths)
        stopped, logprobs = np.asarray(completions.stopped), np.asarray(completions.logprobs)
        traces = []
        for row, question in enumerate(question for question in questions for _ in range(self._shape.num_samples)):
            ids = tuple(tokens[row, : lengths[row] - bool(stopped[row])].tolist())
            traces.append(
                Trace(
                    id=question.id,
                    sample=row % self._shape.num_samples,
                    completion=self._prompt.text(ids),
                    token_ids=ids,
                    logprob=float(logprobs[row]),
                    finish_reason="stop" if stopped[row] else "length",
                )
            )
        return SampledBatch(index, tuple(questions), tuple(traces))
