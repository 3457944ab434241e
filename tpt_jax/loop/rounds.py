"""The rounds: think, prune, train, evaluate; resumable at every boundary.

A round begins from the checkpoint of the one before. Each stage leaves its result in the run's folder, whole or not at
all, and is skipped where the result is there already: the same command goes on wherever it was killed.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

from flax import nnx

from tpt_jax.checkpoints.checksums import BrokenCheckpointError
from tpt_jax.checkpoints.model import CheckpointWriter, ModelFolder, is_complete, read_facts
from tpt_jax.errors import MachineError, Stopped, UserError
from tpt_jax.evaluation import evaluate
from tpt_jax.loop.metrics import MetricsLog
from tpt_jax.loop.run_folder import RunFolder, Stage
from tpt_jax.loop.stages import Setup, fine_tune, sample_and_judge
from tpt_jax.prune.selection import select
from tpt_jax.prune.summary import count_labels
from tpt_jax.records import JudgedTrace, Question
from tpt_jax.runtime import hosts
from tpt_jax.runtime.sharding import in_memory
from tpt_jax.terminal import say
from tpt_jax.train.compile import TrainerProgram
from tpt_jax.train.fit import StepRecord


class Loop:
    """A run in progress: the setup, the run's folder, and the one set of parameters.

    All hosts go through it together. What is in the folder, the first one tells the others.
    """

    def __init__(self, setup: Setup, trainer: TrainerProgram, run_dir: RunFolder, log: MetricsLog | None):
        """A run to begin or to go on with.

        Args:
          log: of the first host; the others have none.
        """
        self._setup = setup
        self._config = setup.config
        self._trainer = trainer
        self._dir = run_dir
        self._log = log
        self._checkpoints = CheckpointWriter()
        self._compilations_told = 0
        self._held: tuple[int, nnx.State] | None = None  # a round, and the training parameters after it
        self._trained: tuple[int, dict[str, Any]] | None = None  # a round whose checkpoint is being written, its facts
        found = hosts.broadcast(
            "what is done",
            lambda: [[run_dir.stages(index), run_dir.metrics(index)] for index in range(self._config.num_rounds + 1)],
        )
        self._stages: list[dict[str, dict[str, Any]]] = [stages for stages, _ in found]
        self._metrics: list[dict[str, Any] | None] = [metrics for _, metrics in found]

    def run(self) -> Iterator[dict[str, Any]]:
        """Does what is left of each round and yields its metrics, those of rounds done earlier included."""
        try:
            for index, metrics in enumerate(self._metrics):
                yield self._round(index) if metrics is None else metrics
        except (Stopped, UserError, MachineError) as error:
            if isinstance(error, Stopped) or hosts.count() == 1:  # the others may not have come to the same error
                self._finish_training()  # a checkpoint that is nearly written
            raise
        self._checkpoints.close()

    def _round(self, index: int) -> dict[str, Any]:
        if hosts.is_first():
            self._dir.write_questions(index, [*self._questions_to_think(index), *self._questions_to_test()])
        if index > 0:
            self._think(index)
            self._prune(index)
        self._train(index)
        self._evaluate(index)
        metrics = self._metrics[index] = hosts.broadcast("the round's metrics", lambda: self._summary(index))
        scalars = {name: value for name, value in metrics.items() if isinstance(value, float | int) and name != "round"}
        if self._log is not None:
            self._log.log(index, "round", index, scalars)
            self._dir.write_metrics(index, metrics)
            self._remove_checkpoints()
        return metrics

    # Stages.

    @contextlib.contextmanager
    def _stage(self, index: int, stage: Stage) -> Iterator[dict[str, Any]]:
        """Times a stage; its seconds and the facts that the body yields say in the folder that it is done."""
        started = time.monotonic()
        facts: dict[str, Any] = {}
        yield facts
        facts["seconds"] = time.monotonic() - started
        self._finish(index, stage, facts)

    def _finish(self, index: int, stage: Stage, facts: dict[str, Any]) -> None:
        self._stages[index][stage] = facts
        if hosts.is_first():
            self._dir.write_stages(index, self._stages[index])

    def _think(self, index: int) -> None:
        if "think" in self._stages[index]:
            return
        with self._stage(index, "think") as facts:
            asked = self._questions_to_think(index)
            sampled = sample_and_judge(
                self._setup, self._dir, index, "think", asked, lambda: self._lend_parameters(index - 1)
            )
            facts |= dataclasses.asdict(sampled)

    def _questions_to_think(self, index: int) -> list[Question]:
        """The next num_questions of the task; after the last one the first comes again."""
        if index == 0:
            return []
        questions = self._setup.task.train
        count = self._config.think.num_questions or len(questions)
        start = (index - 1) * count
        return [questions[(start + offset) % len(questions)] for offset in range(min(count, len(questions)))]

    def _prune(self, index: int) -> None:
        if "prune" in self._stages[index]:
            return
        with self._stage(index, "prune") as facts:
            facts |= hosts.broadcast("pruning", lambda: self._select(index))

    def _select(self, index: int) -> dict[str, Any]:
        """Leaves the traces to train on; returns what is to be known of them."""
        prune = self._config.prune
        judged = self._dir.traces(index, "think")
        selection = select(
            judged,
            max_per_question=prune.max_per_question,
            max_traces=prune.max_traces,
            seed=self._config.seed + index,
            use=prune.keep,
        )
        self._dir.write_training(index, selection.kept)
        return {
            "num_traces": len(judged),
            "num_correct": sum(trace.verdict.correct for trace in judged),
            "num_strict": sum(trace.verdict.strict for trace in judged),
            "num_kept": len(selection.kept),
            "num_dropped": selection.num_dropped,
            "verdicts": count_labels(judged),
            "mean_think_tokens": sum(len(trace.trace.token_ids) for trace in judged) / max(1, len(judged)),
        }

    def _train(self, index: int) -> None:
        """Leaves the round's checkpoint, written while the model is evaluated; in round 0 it is the model as given."""
        if "train" in self._stages[index]:
            return
        checkpoint = self._dir.checkpoint(index)
        if hosts.broadcast("checkpoint", lambda: is_complete(checkpoint)):  # killed between it and its entry
            self._trained = (index, hosts.broadcast("facts", lambda: read_facts(checkpoint)))
            return
        started = time.monotonic()
        facts: dict[str, Any] = {}
        if index == 0:
            parameters = self._setup.load(self._setup.model)
            facts["tokens"] = 0
        else:
            parameters = self._fine_tune(index, facts)
        facts["seconds"] = time.monotonic() - started
        self._held = (index, parameters)
        self._checkpoints.save(checkpoint, parameters, self._setup.model, facts)
        self._trained = (index, facts)

    def _finish_training(self) -> None:
        """Waits for the checkpoint that is being written."""
        if self._trained is None:
            return
        self._checkpoints.wait()
        index, facts = self._trained
        self._trained = None
        self._finish(index, "train", facts)
        saves = self._dir.training_saves(index)
        if hosts.is_first() and saves.is_dir():
            saves.rmtree()

    def _fine_tune(self, index: int, facts: dict[str, Any]) -> nnx.State:
        config = self._config.train
        questions = {question.id: question.question for question in self._setup.task.train}
        rounds = range(1, index + 1) if config.traces_of == "all" else (index,)
        kept = hosts.broadcast(
            "traces to train on", lambda: [[*map(_example, self._dir.training(of))] for of in rounds]
        )
        examples = [
            self._setup.prompt.example(questions[name], token_ids, f"{name}/{sample}")
            for of_round in kept
            for name, sample, token_ids in of_round
        ]

        def log(record: StepRecord) -> None:
            if self._log is not None:
                self._log.log(index, "train", record.step, record.curves)

        trained = fine_tune(
            self._trainer,
            lambda: self._take_parameters(index - 1 if config.start_from == "previous" else 0),
            examples,
            config,
            seed=self._config.seed + index,
            label=f"round {index} train",
            saves=self._dir.training_saves(index),
            on_step=log,
        )
        facts |= {name: getattr(trained, name) for name in ("num_examples", "num_too_long", "tokens", "packing")}
        return trained.parameters

    def _evaluate(self, index: int) -> None:
        if "evaluate" in self._stages[index]:
            self._finish_training()
            return
        with self._stage(index, "evaluate") as facts:
            asked = self._questions_to_test()
            sampled = sample_and_judge(
                self._setup, self._dir, index, "evaluate", asked, lambda: self._lend_parameters(index)
            )
            facts |= dataclasses.asdict(sampled)
            self._finish_training()

    def _questions_to_test(self) -> Sequence[Question]:
        return self._setup.task.test[: self._config.evaluate.num_questions]

    # Parameters.

    def _parameters(self, index: int) -> nnx.State:
        """The training parameters after a round, from the devices or from its checkpoint.

        A checkpoint that is broken is made again from the one before.
        """
        if self._held is None or self._held[0] != index:
            self._held = None  # frees the other round's before these are read
            self._finish_training()
            folder = ModelFolder(self._dir.checkpoint(index), self._setup.model.config)
            try:
                self._held = (index, self._setup.load(folder))
            except BrokenCheckpointError as error:
                say(f"{error}: round {index} trains again, from what was before it")
                self._forget_training(index)
                self._train(index)
                return self._parameters(index)
        return in_memory(self._held[1], "device")

    def _forget_training(self, index: int) -> None:
        """As if the round had not been trained yet."""
        self._stages[index].pop("train", None)
        hosts.barrier("a broken checkpoint")
        if hosts.is_first():
            self._dir.write_stages(index, self._stages[index])
            self._dir.checkpoint(index).rmtree()
        hosts.barrier("a broken checkpoint is gone")

    def _lend_parameters(self, index: int) -> nnx.State:
        """As above, for a caller that copies them; where it is asked for, they are kept in host memory from then on."""
        parameters = self._parameters(index)
        self._held = (index, in_memory(parameters, "pinned_host") if self._config.train.offload else parameters)
        return parameters

    def _take_parameters(self, index: int) -> nnx.State:
        """As above, for a caller that donates them."""
        parameters = self._parameters(index)
        self._held = None
        return parameters

    def _remove_checkpoints(self) -> None:
        """All but the newest, the best, and the one that rounds start from."""
        count = self._config.keep_checkpoints
        if count is None:
            return
        done = {index: metrics for index, metrics in enumerate(self._metrics) if metrics is not None}
        best = max(done, key=lambda index: done[index]["pass_at_1"])
        first = {0} if self._config.train.start_from == "base" else set()
        for index in done.keys() - {*sorted(done)[-count:], best} - first:
            if self._dir.checkpoint(index).is_dir():
                self._dir.checkpoint(index).rmtree()

    def _summary(self, index: int) -> dict[str, Any]:
        """The round's metrics: compilations since the last one (the first has start-up's), the rest from the folder."""
        compilations = self._setup.compilations.count - self._compilations_told
        self._compilations_told += compilations
        stages = self._stages[index]
        pruned = {"num_traces": 0, "num_correct": 0, "num_strict": 0, "num_kept": 0, "num_dropped": {}}
        pruned |= {name: fact for name, fact in stages.get("prune", {}).items() if name not in ("seconds", "verdicts")}
        tested = self._dir.traces(index, "evaluate")
        verdicts = {"think": stages["prune"]["verdicts"]} if "prune" in stages else {}
        return {
            "round": index,
            **dataclasses.asdict(evaluate(tested, k=self._config.evaluate.num_samples)),
            **pruned,
            "verdicts": {**verdicts, "evaluate": count_labels(tested)},
            "num_contaminated": self._setup.task.num_contaminated,
            "num_prompts_too_long": {
                stage: stages[stage]["num_prompts_too_long"] for stage in ("think", "evaluate") if stage in stages
            },
            "seconds": {name: facts["seconds"] for name, facts in stages.items()},
            "tokens": {name: facts["tokens"] for name, facts in stages.items() if "tokens" in facts},
            **{name: stages["think"][name] for name in ("slot_occupancy", "device_idle") if "think" in stages},
            "compilations": compilations,
        }


def _example(judged: JudgedTrace) -> tuple[str, int, tuple[int, ...]]:
    return judged.trace.id, judged.trace.sample, judged.trace.token_ids
