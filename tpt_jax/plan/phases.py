"""What each phase of a run needs of a device, from its program compiled for a topology."""

import dataclasses
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tpt_jax.config import RunConfig, Sampling, SamplingConfig, TrainConfig
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.transformer import abstract_parameters, place_abstract
from tpt_jax.plan.chips import Chip
from tpt_jax.plan.hlo import Module
from tpt_jax.runtime import memory
from tpt_jax.runtime.memory import DoesNotFitError, Need
from tpt_jax.runtime.sharding import DECODE_RULES, TRAIN_RULES, Layout
from tpt_jax.think.compile import SlotProgram, compile_slots
from tpt_jax.think.cost_probes import compile_prefill, compile_step
from tpt_jax.think.engine import slot_shape
from tpt_jax.think.reshard import compile_reshard
from tpt_jax.think.sampler import fewer_slots
from tpt_jax.think.sampling import Filters
from tpt_jax.think.state import SlotShape
from tpt_jax.train.compile import compile_trainer
from tpt_jax.train.flops import model_flops

NO_STOP = (0,)  # which token ends a trace decides nothing of what a program needs


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run of a program on one device.

    Attributes:
      bytes: to and from its memory.
      collectives: bytes sent to other devices, by kind.
      least: what there is no way around: of a decoding step, the bytes of weights and cache; of a training step, the
        model's flops; None where nobody has thought of one.
    """

    flops: int
    bytes: int
    collectives: dict[str, int]
    least: float | None = None

    def seconds(self, chip: Chip) -> float:
        """No device is faster: the larger of the time for its products and that for its memory."""
        return max(self.flops / chip.flops, self.bytes / chip.bandwidth)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Of a device, while a program runs; bytes.

    Attributes:
      resident: what lies there besides, of which the program does not know.
    """

    arguments: int
    temporaries: int
    peak: int
    resident: int = 0

    @property
    def needed(self) -> int:
        return self.peak + self.resident


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase of a run.

    Attributes:
      unit: what one run of its program does.
      memory: None where the program does not compile into what a device has, or is part of another phase's program.
      advice: what to do where it does not fit; None where it fits.
    """

    name: str
    unit: str
    memory: Memory | None
    cost: Cost | None
    advice: str | None = None


@dataclasses.dataclass(frozen=True)
class Compiler:
    """Compiles a run's phases for a mesh of devices, whether they are here or not."""

    config: RunConfig
    model: ModelConfig
    mesh: Mesh
    chip: Chip

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.model.compute_dtype)

    @property
    def decode_layout(self) -> Layout:
        return Layout(self.mesh, DECODE_RULES)

    @property
    def master_bytes(self) -> int:
        """Of the fp32 weights on one device; they stay there while the model samples, unless they are offloaded."""
        placed = place_abstract(abstract_parameters(self.model)[1], Layout(self.mesh, TRAIN_RULES))
        return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * 4 for leaf in jax.tree.leaves(placed))

    def shape(self, sampling: Sampling, num_questions: int) -> SlotShape:
        """What a section of the config samples, with prompts as long as they may be."""
        section: SamplingConfig = getattr(self.config, sampling)
        return slot_shape(
            num_questions=min(section.num_questions or num_questions, num_questions),
            num_samples=section.num_samples,
            num_prefix_tokens=0,
            max_prompt_tokens=section.max_prompt_tokens,
            max_new_tokens=section.max_new_tokens,
            num_slots=section.num_slots,
            num_shards=self.decode_layout.batch_ways,
            filters=Filters(section.top_k, section.top_p, section.min_p),
            cache_type=section.cache_type,
            option=f"{sampling}.",
        )

    def slots(self, sampling: Sampling, shape: SlotShape) -> SlotProgram:
        """The sampling program.

        Raises:
          DoesNotFitError: it does not fit the devices beside the fp32 weights.
        """
        layout = self.decode_layout

        def advise(need: Need | None) -> str:
            beside = Need(need.needed + self._resident, need.available) if need else None
            return fewer_slots(beside, sampling, shape, self.model, layout, self.dtype)

        with memory.refusing(advise):
            program = compile_slots(self.model, layout, self.dtype, shape, NO_STOP)
        needed = self.sampling_memory(program).needed
        if needed > self.chip.memory:
            need = Need(needed, self.chip.memory)
            raise DoesNotFitError(
                fewer_slots(need, sampling, shape, self.model, layout, self.dtype) + ", or train.offload: true",
                need,
            )
        return program

    def sampling_memory(self, program: SlotProgram) -> Memory:
        return _memory(program.decode_chunk, self._resident)

    def trainer(self, train: TrainConfig) -> jax.stages.Compiled:
        """The training step.

        Raises:
          DoesNotFitError: it does not fit the devices.
        """
        program = compile_trainer(self.model, self.mesh, compute_dtype=self.config.model.compute_dtype, train=train)
        return program.compiled_step

    def training_memory(self, step: jax.stages.Compiled) -> Memory:
        return _memory(step, 0)

    @property
    def _resident(self) -> int:
        return 0 if self.config.train.offload else self.master_bytes

    def phases(self, shapes: dict[Sampling, SlotShape]) -> list[Phase]:
        """All of them; two compile at a time."""
        with ThreadPoolExecutor(2) as pool:
            train = pool.submit(self._train)
            sampling = [pool.submit(self._sampling, kind, shapes[kind]) for kind in _distinct(shapes)]
            return [phase for phases in sampling for phase in phases.result()] + [train.result()]

    def _sampling(self, sampling: Sampling, shape: SlotShape) -> list[Phase]:
        """Reshard (with what thinks), prefill and decode; prefill is part of the program that decodes."""
        layout, rows = self.decode_layout, shape.prefill_rows
        source = place_abstract(abstract_parameters(self.model)[1], Layout(self.mesh, TRAIN_RULES))
        prefills, decodes = f"{rows} prompts a shard", f"a token in each of {shape.num_slots} slots a shard"
        try:
            program = self.slots(sampling, shape)
        except DoesNotFitError as error:
            advice = str(error)
            return [Phase(f"{sampling}: decode", decodes, None, None, advice)]
        reshard = compile_reshard(source, program.parameters).compiled
        prefill = compile_prefill(self.model, layout, program)
        step = compile_step(self.model, layout, program)
        phases = [
            Phase("reshard", "all weights", _memory(reshard, 0), _cost(reshard)),
            Phase(f"{sampling}: prefill", prefills, None, _cost(prefill.compiled)),
            Phase(
                f"{sampling}: decode",
                decodes,
                self.sampling_memory(program),
                dataclasses.replace(_cost(step.compiled), least=step.least_bytes),
            ),
        ]
        return phases if sampling == "think" else phases[1:]

    def _train(self) -> Phase:
        train = self.config.train
        unit = f"a step of {train.micro_batches * train.rows} x {train.sequence_length} tokens"
        try:
            step = self.trainer(train)
        except DoesNotFitError as error:
            return Phase("train step", unit, None, None, str(error))
        lengths = [train.sequence_length] * (train.micro_batches * train.rows)
        least = model_flops(self.model, lengths) / self.mesh.size
        return Phase("train step", unit, self.training_memory(step), dataclasses.replace(_cost(step), least=least))


def _distinct(shapes: dict[Sampling, SlotShape]) -> Iterable[Sampling]:
    """The sections but for those whose program differs from an earlier one's in the number of questions only."""
    seen = []
    for sampling, shape in shapes.items():
        key = dataclasses.replace(shape, num_questions=0, num_traces=0)
        if key not in seen:
            seen.append(key)
            yield sampling


def _memory(compiled: jax.stages.Compiled, resident: int) -> Memory:
    analysis: Any = compiled.memory_analysis()
    arguments, temporaries = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Memory(arguments, temporaries, max(analysis.peak_memory_in_bytes, arguments + outputs), resident)


def _cost(compiled: jax.stages.Compiled) -> Cost:
    module = Module(str(compiled.as_text()))
    return Cost(module.flops(), module.bytes(), dict(module.collectives()))
