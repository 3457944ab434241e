"""Memory and cost of each phase of a run on one device, from its program compiled for a topology."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tpt_jax.config import RunConfig, Sampling, SamplingConfig, TrainConfig
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.masters import abstract_masters, master_bytes
from tpt_jax.plan.chips import Chip
from tpt_jax.plan.hlo import Module
from tpt_jax.plan.network import Network
from tpt_jax.plan.timeline import Wires, wires_of
from tpt_jax.runtime.memory import USABLE, DoesNotFitError, MemoryNeed, explain_out_of_memory, peak_bytes
from tpt_jax.runtime.sharding import DECODE_RULES, TRAIN_RULES, Layout
from tpt_jax.think.cost_probes import NUM_DECODE_STEPS, compile_decode_steps, compile_prefill, least_step_bytes
from tpt_jax.think.fitting_slots import compile_fitting, fewer_slots
from tpt_jax.think.reshard import compile_reshard
from tpt_jax.think.sampling import Filters
from tpt_jax.think.sampling_plan import slot_shape, think_shape
from tpt_jax.think.slot_program import SlotProgram, compile_slots
from tpt_jax.think.state import SlotShape
from tpt_jax.train.compile import compile_trainer
from tpt_jax.train.flops import model_flops

STOP_IDS = (0,)  # any will do: memory and cost do not depend on the stop token


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of running a program once, on one device.

    Attributes:
      bytes: moved to and from main memory.
      least: lower bound: for a decode step, the bytes of weights and KV cache; for a train step, the model's flops;
        None for other programs.
    """

    flops: int
    bytes: int
    wires: Wires
    least: float | None = None

    def seconds(self, chip: Chip) -> float:
        """Lower bound on the time: the largest of compute, memory and wires, as if each ran beside the others."""
        return max(self.parts(chip).values())

    def parts(self, chip: Chip) -> dict[str, float]:
        """Seconds that each part takes alone."""
        return {
            "compute": self.flops / chip.flops,
            "memory": self.bytes / chip.bandwidth,
            "wires": self.wires.seconds,
        }

    def bound_by(self, chip: Chip) -> str:
        """The part that takes longest."""
        parts = self.parts(chip)
        return max(parts, key=lambda part: parts[part])


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of one device while a program runs; bytes.

    Attributes:
      resident: arrays on the device that are not arguments of the program.
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
      unit: the work done by one run of its program.
      tokens: that all devices together sample or train on in one run; None for other phases.
      memory: None if the program does not fit, or is part of another phase's program.
      cost: None if the program does not fit.
      advice: what to change if it does not fit; None if it fits.
      tokens: sampled in one run, over all devices; None for a program that does not decode.
    """

    name: str
    unit: str
    memory: Memory | None
    cost: Cost | None
    advice: str | None = None
    tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Compiler:
    """Compiles the phases of a run for a mesh of devices, which need not be attached."""

    config: RunConfig
    model: ModelConfig
    mesh: Mesh
    chip: Chip
    network: Network

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.model.compute_dtype)

    @property
    def decode_layout(self) -> Layout:
        return Layout(self.mesh, DECODE_RULES)

    @property
    def train_layout(self) -> Layout:
        return Layout(self.mesh, TRAIN_RULES)

    @property
    def resident_while_sampling(self) -> int:
        """Bytes of the master parameters on one device."""
        train = self.config.train
        return 0 if train.offload else master_bytes(self.model, self.train_layout, train.lora)

    def slot_shape(self, sampling: Sampling, num_questions: int) -> SlotShape:
        """The slots of a sampling section of the config, assuming prompts of maximum length."""
        section: SamplingConfig = getattr(self.config, sampling)
        shape = slot_shape(
            num_questions=min(section.num_questions or num_questions, num_questions),
            num_samples=section.num_samples,
            num_prefix_tokens=0,
            max_prompt_tokens=section.max_prompt_tokens,
            max_new_tokens=section.max_new_tokens,
            num_slots=section.num_slots,
            num_shards=self.decode_layout.batch_ways,
            filters=Filters(section.top_k, section.top_p, section.min_p),
            cache_type=section.cache_type,
            weights=section.weights,
            option=f"{sampling}.",
        )
        if sampling == "evaluate":
            return shape
        return think_shape(shape, self.config, self.decode_layout.batch_ways)

    def compile_sampler(self, sampling: Sampling, shape: SlotShape) -> SlotProgram:
        """Compiles the sampling program, whose shape has the number of slots if this one leaves it open.

        Raises:
          DoesNotFitError: it does not fit in memory next to the master parameters.
        """
        layout, resident = self.decode_layout, self.resident_while_sampling
        if shape.auto_slots:
            compile_shape = functools.partial(self.compile_shape, sampling)
            room = USABLE * self.chip.memory - resident
            return compile_fitting(
                compile_shape, sampling, shape, self.model, layout, self.dtype, room=room, resident=resident
            )
        program = self.compile_shape(sampling, shape)
        needed = self.sampling_memory(program).needed
        if needed > self.chip.memory:
            need = MemoryNeed(needed, self.chip.memory)
            raise DoesNotFitError(fewer_slots(need, sampling, shape, self.model, layout, self.dtype, resident), need)
        return program

    def compile_shape(self, sampling: Sampling, shape: SlotShape) -> SlotProgram:
        """Compiles the sampling program for a given number of slots.

        Raises:
          DoesNotFitError: it does not fit in memory on its own.
        """
        layout, resident = self.decode_layout, self.resident_while_sampling

        def advise(need: MemoryNeed | None) -> str:
            total = MemoryNeed(need.needed + resident, need.available) if need else None
            return fewer_slots(total, sampling, shape, self.model, layout, self.dtype, resident)

        with explain_out_of_memory(advise):
            return compile_slots(self.model, layout, self.dtype, shape, STOP_IDS)

    def sampling_memory(self, program: SlotProgram) -> Memory:
        return _memory(program.decode_chunk, self.resident_while_sampling)

    def compile_train_step(self, train: TrainConfig) -> jax.stages.Compiled:
        """Compiles the train step.

        Raises:
          DoesNotFitError: it does not fit in memory.
        """
        program = compile_trainer(self.model, self.mesh, compute_dtype=self.config.model.compute_dtype, train=train)
        return program.compiled_step

    def training_memory(self, step: jax.stages.Compiled) -> Memory:
        return _memory(step)

    def phases(self, shapes: Mapping[Sampling, SlotShape]) -> list[Phase]:
        """Compiles all phases, two at a time."""
        with ThreadPoolExecutor(2) as pool:
            train = pool.submit(self._train_phase)
            sampling = [pool.submit(self._sampling_phases, kind, shapes[kind]) for kind in _distinct(shapes)]
            return [phase for phases in sampling for phase in phases.result()] + [train.result()]

    def _sampling_phases(self, sampling: Sampling, shape: SlotShape) -> list[Phase]:
        """Reshard (for think only), prefill and decode; prefill runs inside the decoding program."""
        source = abstract_masters(self.model, self.train_layout, self.config.train.lora)[1]
        prefill_unit = f"{shape.prefill_batches[1]} tokens of prompts per shard"
        try:
            program = self.compile_sampler(sampling, shape)
        except DoesNotFitError as error:
            return [Phase(f"{sampling}: decode", "a token in each slot", None, None, str(error))]
        num_slots = program.shape.num_slots
        reshard = compile_reshard(source, program.parameters).compiled
        prefill = compile_prefill(self.model, self.decode_layout, program)
        step = self.decode_step_cost(program)
        phases = [
            Phase("reshard", "all weights", _memory(reshard), self.cost(reshard)),
            Phase(f"{sampling}: prefill", prefill_unit, None, self.cost(prefill)),
            Phase(
                f"{sampling}: decode",
                f"a token in each of {num_slots} slots per shard{' (num_slots: auto)' if shape.auto_slots else ''}",
                self.sampling_memory(program),
                dataclasses.replace(step, least=least_step_bytes(program)),
                tokens=num_slots * self.decode_layout.batch_ways,
            ),
        ]
        return phases if sampling == "think" else phases[1:]

    def _train_phase(self) -> Phase:
        train = self.config.train
        num_rows = train.micro_batches * train.rows
        unit = f"a step of {num_rows} x {train.sequence_length} tokens"
        try:
            step = self.compile_train_step(train)
        except DoesNotFitError as error:
            return Phase("train step", unit, None, None, str(error))
        least = model_flops(self.model, [train.sequence_length] * num_rows, train.lora) / self.mesh.size
        cost = dataclasses.replace(self.cost(step), least=least)
        return Phase("train step", unit, self.training_memory(step), cost, tokens=num_rows * train.sequence_length)

    def cost(self, compiled: jax.stages.Compiled) -> Cost:
        """Cost of one run of a program, from its text."""
        module = Module(str(compiled.as_text()))
        return Cost(module.flops(), module.bytes(), wires_of(module, self.chip, self.network))

    def decode_step_cost(self, program: SlotProgram) -> Cost:
        """Cost of one decode step, as part of the loop in which steps run."""
        steps = self.cost(compile_decode_steps(self.model, self.decode_layout, program))
        flops, size = steps.flops // NUM_DECODE_STEPS, steps.bytes // NUM_DECODE_STEPS
        return Cost(flops, size, steps.wires.share(NUM_DECODE_STEPS))


def _distinct(shapes: Mapping[Sampling, SlotShape]) -> Iterable[Sampling]:
    """The sections with programs of their own; the number of questions, traces and prefills changes no costs."""
    seen = []
    for sampling, shape in shapes.items():
        key = dataclasses.replace(shape, num_questions=0, num_traces=0, prefills_per_question=1, traces_per_prefill=1)
        if key not in seen:
            seen.append(key)
            yield sampling


def _memory(compiled: jax.stages.Compiled, resident: int = 0) -> Memory:
    analysis: Any = compiled.memory_analysis()
    arguments, temporaries = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    return Memory(arguments, temporaries, peak_bytes(compiled), resident)
