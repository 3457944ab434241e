"""Plans a run on a TPU slice: memory and cost of each phase, and lower bounds on the time and cost of a round."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tpt_jax.checkpoints.model_folder import ModelFolder
from tpt_jax.config import RunConfig, Sampling
from tpt_jax.errors import UserError
from tpt_jax.models.architecture import ModelConfig
from tpt_jax.models.published import PUBLISHED, published
from tpt_jax.plan.chips import Chip, chip_of
from tpt_jax.plan.network import Network
from tpt_jax.plan.phases import Compiler, Phase
from tpt_jax.plan.rounds import Assumptions, StageBound, stage_bounds
from tpt_jax.plan.search import most_rows, most_slots
from tpt_jax.plan.topology import tpu_devices
from tpt_jax.runtime.mesh import make_mesh
from tpt_jax.terminal import say
from tpt_jax.think.state import SlotShape


@dataclasses.dataclass(frozen=True)
class Plan:
    """The needs of a run on a TPU slice.

    Attributes:
      largest: the largest value of a config key that fits, by key; 0 if none was found. None if not searched for.
      price: of an hour of a chip, in any currency; None if not given.
    """

    config: RunConfig
    topology: str
    chip: Chip
    mesh_sizes: dict[str, int]
    num_parameters: int
    phases: Sequence[Phase]
    stages: Sequence[StageBound]
    assumed: Assumptions
    largest: dict[str, int] | None
    price: float | None = None

    @property
    def fits(self) -> bool:
        return not any(phase.advice for phase in self.phases)

    @property
    def num_chips(self) -> int:
        return math.prod(self.mesh_sizes.values()) // self.chip.per_chip

    @property
    def round_seconds(self) -> float | None:
        """Lower bound on the first round; None if a phase does not fit."""
        seconds = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(seconds) if len(seconds) == len(self.stages) else None

    @property
    def round_chip_hours(self) -> float | None:
        return None if self.round_seconds is None else self.round_seconds * self.num_chips / 3600

    @property
    def round_price(self) -> float | None:
        """Lower bound on what the first round costs; None if a phase does not fit or the price is not known."""
        return None if self.round_chip_hours is None or self.price is None else self.round_chip_hours * self.price

    def tokens_per_second(self, phase: Phase) -> float | None:
        """Upper bound on a chip's tokens per second; None for phases that do not count tokens, or do not fit."""
        if phase.tokens is None or phase.cost is None:
            return None
        return phase.tokens / self.num_chips / phase.cost.seconds(self.chip)

    def as_json(self) -> dict[str, Any]:
        """All figures; bytes, flops and seconds."""
        return {
            "config": self.config.name,
            "topology": self.topology,
            "num_chips": self.num_chips,
            "mesh": self.mesh_sizes,
            "num_parameters": self.num_parameters,
            "chip": dataclasses.asdict(self.chip),
            "phases": [self._phase_json(phase) for phase in self.phases],
            "round": {
                "assumes": dataclasses.asdict(self.assumed),
                "stages": [dataclasses.asdict(stage) for stage in self.stages],
                "seconds": self.round_seconds,
                "chip_hours": self.round_chip_hours,
                "price": self.round_price,
                "num_rounds": self.config.num_rounds,
            },
            "largest": self.largest,
        }

    def _phase_json(self, phase: Phase) -> dict[str, Any]:
        cost = phase.cost
        bound = {
            "seconds": cost.seconds(self.chip) if cost else None,
            "seconds_of_parts": cost.parts(self.chip) if cost else None,
            "bound_by": cost.bound_by(self.chip) if cost else None,
            "tokens_per_second_per_chip": self.tokens_per_second(phase),
        }
        return {**dataclasses.asdict(phase), **bound}


def make_plan(
    config: RunConfig, topology: str, assumed: Assumptions, *, search: bool, price: float | None = None
) -> Plan:
    """Compiles every phase of a run for a topology.

    Args:
      search: also find the most slots and rows that fit.
      price: see Plan.

    Raises:
      UserError: unknown topology, unknown model, or a mesh that does not fit the topology.
    """
    compiler = make_compiler(config, topology)
    num_train, num_test = config.task.num_questions()
    shapes: dict[Sampling, SlotShape] = {
        "think": compiler.slot_shape("think", num_train),
        "evaluate": compiler.slot_shape("evaluate", num_test),
    }
    say(
        f"{config.name}: {compiler.model.num_parameters / 1e9:.2f}B parameters on {topology}, "
        f"mesh {dict(compiler.mesh.shape)}; compiling"
    )
    phases = compiler.phases(shapes)
    stages = stage_bounds(config, phases, shapes, compiler.decode_layout.batch_ways, assumed, compiler.chip)
    largest = None
    if search:
        largest = {"think.num_slots": most_slots(compiler, "think", num_train), "train.rows": most_rows(compiler)}
    return Plan(
        config=config,
        topology=topology,
        chip=compiler.chip,
        mesh_sizes=dict(compiler.mesh.shape),
        num_parameters=compiler.model.num_parameters,
        phases=phases,
        stages=stages,
        assumed=assumed,
        largest=largest,
        price=price,
    )


def make_compiler(config: RunConfig, topology: str) -> Compiler:
    """The compiler of a run's programs for a topology.

    Raises:
      UserError: see make_plan.
    """
    chip = chip_of(topology)
    mesh = make_mesh(config.mesh, tpu_devices(topology))
    return Compiler(config, model_config(config), mesh, chip, Network.of(mesh, topology))


def assumptions(
    config: RunConfig, mean_prompt: int | None, mean_completion: int | None, right_share: float
) -> Assumptions:
    """Mean lengths are half of think.max_prompt_tokens and a third of think.max_new_tokens unless given."""
    return Assumptions(
        mean_prompt or -(-config.think.max_prompt_tokens // 2),
        mean_completion or -(-config.think.max_new_tokens // 3),
        right_share,
    )


def model_config(config: RunConfig) -> ModelConfig:
    """The architecture of model.path, or of a published model if the folder is not there.

    Raises:
      UserError: neither the folder nor a published model of that name exists.
    """
    path = Path(config.model.path).expanduser()
    if config.model.path == "quickstart" or path.is_dir():
        return ModelFolder.open(config.model.path).config
    architecture = next(filter(None, map(published, _published_names(config.model.path))), None)
    if architecture is None:
        raise UserError(
            f"model.path ({config.model.path}): no such folder, and not the name of a published model, which a plan "
            f"knows without downloading it; give a folder with a config.json, or one of {', '.join(PUBLISHED)}"
        )
    return architecture


def _published_names(path: str) -> Iterator[str]:
    """What a name on the Hub, or on Kaggle, may be called in PUBLISHED."""
    if path.startswith("kaggle://"):
        _, model, _, variation = [*path.removeprefix("kaggle://").split("/"), "", "", "", ""][:4]
        yield variation  # gemma-2-2b-it
        yield f"{model}-{variation}"  # 2b-it of gemma-2
    yield path.removeprefix("hf://").partition("@")[0]
