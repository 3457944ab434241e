"""What each stage of a run reads, as a key: stages with equal keys have equal results.

A key is a hash of the settings that the stage reads, of the seeds it uses, and of the keys of the stages before it. A
training reads the traces themselves, so that two ways of pruning that keep the same traces give the same weights.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from tpt_jax.config import RunConfig
from tpt_jax.config_parsing import flat, plain_values
from tpt_jax.loop.on_demand import make_pipeline
from tpt_jax.loop.run_folder import Stage
from tpt_jax.loop.seeds import derive_seed
from tpt_jax.prune.demand import sample_levels, takes_all_samples
from tpt_jax.prune.registry import dump_steps
from tpt_jax.prune.step import Step
from tpt_jax.think.sampling_plan import keeps_token_scores

Kind = Literal["base", "think", "prune", "train", "evaluate"]  # base: round 0's weights, the model as given

NO_STAGE: frozenset[Kind] = frozenset()
EVERY_STAGE: frozenset[Kind] = frozenset(("base", "think", "prune", "train", "evaluate"))
ON_DEVICES: frozenset[Kind] = frozenset(("think", "train", "evaluate"))
SAMPLING: frozenset[Kind] = frozenset(("think", "evaluate"))  # these judge their traces, too


def _only(section: Kind, names: str) -> dict[str, frozenset[Kind]]:
    return {f"{section}.{name}": frozenset((section,)) for name in names.split()}


_SAMPLING_SETTINGS = "num_questions num_samples temperature top_k top_p min_p max_prompt_tokens max_new_tokens"
_SAMPLING_SETTINGS += " num_slots cache_type weights"  # the slots change only the rounding of a trace's logits

# The stages that read a setting, or any setting of a section. A setting that is not here is read by every stage, so
# that a new one is never forgotten. What a stage only inherits from the stages before it is not repeated.
READ_BY: Mapping[str, frozenset[Kind]] = {
    "name": NO_STAGE,
    "model.path": EVERY_STAGE,
    "model.version": EVERY_STAGE,
    "model.compute_dtype": ON_DEVICES,
    "task": ON_DEVICES,
    "prompt": ON_DEVICES,
    "seed": SAMPLING,  # the other stages read seeds that are derived from it
    "num_rounds": NO_STAGE,
    "early_stop": NO_STAGE,
    "keep_checkpoints": NO_STAGE,
    "mesh": ON_DEVICES,
    **_only("think", f"{_SAMPLING_SETTINGS} until max_samples"),
    "think.token_scores": NO_STAGE,  # the think stage reads it together with the pruning, in `_pruning_read_by_think`
    **_only("evaluate", _SAMPLING_SETTINGS),
    **_only("prune", "steps max_per_question max_traces"),
    "prune.num_workers": NO_STAGE,
    "prune.seconds_per_trace": SAMPLING,
    "prune.run_code_without_sandbox": SAMPLING,
    "train.start_from": NO_STAGE,  # it chooses the weights, and traces_of the traces, which are in the key themselves
    "train.traces_of": NO_STAGE,
    **_only("train", "num_epochs max_steps rows sequence_length micro_batches attention remat loss optimizer"),
    "train.lora": EVERY_STAGE,  # round 0 freezes the weights
    "train.offload": NO_STAGE,
    "train.save_every": NO_STAGE,
    "trackers": NO_STAGE,
    "profile_steps": NO_STAGE,
    "profile_chunks": NO_STAGE,
}


def pruning_read_by_think(config: RunConfig) -> Mapping[str, Any]:
    """What sampling must know of the pruning: what is enough to train on, and whether steps need token scores."""
    think, prune = config.think, config.prune
    pipeline = make_pipeline(config, round_index=1)
    scores = keeps_token_scores(config)
    if takes_all_samples(pipeline, think.until) and len(sample_levels(think.num_samples, think.max_samples)) == 1:
        return {"token_scores": scores}
    selecting = [step for step in prune.steps if isinstance(step, Step)]
    steps = dump_steps(tuple(selecting))
    return {"token_scores": scores, "steps": steps, "limits": [prune.max_per_question, prune.max_traces]}


def readers(setting: str) -> frozenset[Kind]:
    """The stages that read a setting, given by its dotted key."""
    names = setting.split(".")
    prefixes = (".".join(names[:length]) for length in range(len(names), 0, -1))
    return next((READ_BY[prefix] for prefix in prefixes if prefix in READ_BY), EVERY_STAGE)


@dataclasses.dataclass(frozen=True)
class StageKeys:
    """The keys of a run's stages.

    Attributes:
      training_digest: the digest of the traces kept in a round, from 1; called only for rounds that have pruned.
    """

    config: RunConfig
    training_digest: Callable[[int], str]

    def key(self, index: int, stage: Stage) -> str:
        """The key of a stage of a round; the rounds before it have pruned, and this one too if the stage is train."""
        seed = self.config.seed
        if stage == "think":
            return self._digest("think", index, self.key(index - 1, "train"), pruning_read_by_think(self.config))
        if stage == "prune":
            return self._digest("prune", derive_seed(seed, index, "select"), self.key(index, "think"))
        if stage == "evaluate":
            return self._digest("evaluate", index, self.key(index, "train"))
        if index == 0:
            return self._digest("base", *([seed] if self.config.train.lora else []))  # of new adapters
        train = self.config.train
        start = index - 1 if train.start_from == "previous" else 0
        rounds = range(1, index + 1) if train.traces_of == "all" else (index,)
        traces = [self.training_digest(each) for each in rounds]
        return self._digest("train", derive_seed(seed, index, "train"), self.key(start, "train"), traces)

    def _digest(self, kind: Kind, *inputs: Any) -> str:
        settings = {name: value for name, value in flat(plain_values(self.config)).items() if kind in readers(name)}
        return digest([kind, settings, *inputs])


def digest(value: Any) -> str:
    """SHA-256 of plain values, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
