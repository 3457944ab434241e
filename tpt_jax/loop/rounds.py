"""The rounds of a run: think, prune, train, evaluate.

Each stage writes its result to the run folder, atomically, and a stage whose result is there is skipped: after a kill
the same command resumes.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tpt_jax.config import Sampling, SamplingConfig, steps_of
from tpt_jax.errors import Stopped
from tpt_jax.evaluation import Answer, evaluate_answers
from tpt_jax.loop.figures import StepFigures
from tpt_jax.loop.metrics import MetricsLog
from tpt_jax.loop.monitors import Tallies, WatchedAnswer, monitor, tally, to_metrics, warn_of_collapse
from tpt_jax.loop.parts import broadcast_each
from tpt_jax.loop.recovery import Facts, RoundState
from tpt_jax.loop.run_folder import RunFolder, Stage, is_no_better
from tpt_jax.loop.sampling import Pass, sample_all, sample_on_demand
from tpt_jax.loop.seeds import derive_seed
from tpt_jax.loop.selection import select_traces
from tpt_jax.loop.setup import Setup
from tpt_jax.loop.sharing import Sharing
from tpt_jax.loop.training import Trained, fine_tune
from tpt_jax.loop.training_set import check_training_set
from tpt_jax.loop.weights import Weights
from tpt_jax.prompts import Example
from tpt_jax.prune.summary import count_labels
from tpt_jax.records import QuestionSet
from tpt_jax.runtime import hosts
from tpt_jax.runtime.profiling import Profile
from tpt_jax.terminal import say
from tpt_jax.train.compile import TrainerProgram

THINK_FIGURES = ("slot_occupancy", "device_idle", "num_surplus", "num_cancelled")


@dataclasses.dataclass(frozen=True)
class Loop:
    """Runs the rounds, from state to state; all hosts do so together.

    Attributes:
      log: the curves, on the first host only.
      sharing: the stages that other runs of a sweep have; None if the run is alone.
    """

    setup: Setup
    trainer: TrainerProgram
    folder: RunFolder
    weights: Weights
    log: MetricsLog | None
    sharing: Sharing | None = None

    def run(self, states: list[RoundState]) -> Iterator[list[RoundState]]:
        """Finishes each round that is not done; yields the states up to that round, done ones included."""
        done: list[RoundState] = []
        try:
            for state in states:
                if state.is_done:
                    done = [*done, state]
                else:
                    done = [*done, self.run_round(state)]
                    self._remove_old_checkpoints(done)
                yield done
                if self.setup.config.early_stop and is_no_better([*rates(done).values()]):
                    say(f"round {state.index} is not better than round {best_round(done)}: early_stop ends the run")
                    break
        except BaseException as error:
            if isinstance(error, Stopped) or hosts.count() == 1:  # other hosts may not have failed here
                self.weights.close()  # completes a checkpoint that is being written
            raise
        self.weights.close()

    def run_round(self, state: RoundState) -> RoundState:
        """Runs the stages of a round that are not done; the checkpoint is written while the model is evaluated."""
        index = state.index
        if hosts.is_first():
            self.folder.write_questions(index, [*self._training_questions(index), *self._test_questions()])
        if index > 0 and "think" not in state.stages:
            state = self._record(state, "think", self._shared(index, "think") or _timed(lambda: self._think(index)))
        if index > 0 and "prune" not in state.stages:
            state = self._record(state, "prune", self._shared(index, "prune") or _timed(lambda: self._prune(index)))
        trained = evaluated = None
        if "train" not in state.stages:
            trained = self._shared(index, "train") or self._train(state)
        if "evaluate" not in state.stages:
            evaluated = self._shared(index, "evaluate") or _timed(lambda: self._evaluate(index))
        self.weights.wait()
        if trained is not None:
            state = self._record(state, "train", trained)
        self._remove_training_saves(index)
        if evaluated is not None:
            state = self._record(state, "evaluate", evaluated)
        return state if state.metrics is not None else self._summarize(state)

    def _shared(self, index: int, stage: Stage) -> Facts | None:
        """Takes a stage over from another run of the sweep that has it; None if there is none."""
        return self.sharing.take(index, stage, lambda *step: self._log_step(index, *step)) if self.sharing else None

    # Stages. Each returns the facts about what it did.

    def _think(self, index: int) -> Facts:
        questions = self._training_questions(index)
        return dataclasses.asdict(sample_on_demand(self._pass(index, "think", questions, index - 1)))

    def _pass(self, index: int, sampling: Sampling, questions: QuestionSet, weights_of: int) -> Pass:
        """A sampling pass of a round, with the weights of this round or the one before it."""
        log = functools.partial(self._log_sampling, index, sampling)
        chunks = self.setup.config.profile_chunks if sampling == "think" else None
        profile = Profile(self.folder.profiles, f"think-{index:03}", steps_of(chunks))
        load = functools.partial(self.weights.lend, weights_of)
        return Pass(self.setup, self.folder, index, sampling, questions, load, log, profile)

    def _prune(self, index: int) -> Facts:
        names = [question.id for question in self._training_questions(index)]
        return hosts.broadcast(f"round {index} prune", lambda: select_traces(self.setup, self.folder, index, names))

    def _train(self, state: RoundState) -> Facts:
        """Makes the round's parameters, in round 0 the base model's, and starts writing their checkpoint."""
        started = time.monotonic()
        if state.index == 0:
            parameters, facts = self.setup.load(self.setup.model), {"tokens": 0}
        else:
            trained = self._fine_tune(state)
            parameters, facts = trained.parameters, trained.facts
        facts = {**facts, "seconds": time.monotonic() - started}
        self.weights.put(state.index, parameters, facts)
        return facts

    def _fine_tune(self, state: RoundState) -> Trained:
        config, index = self.setup.config, state.index
        examples = self._examples(index)
        check_training_set(examples, index, state.stages["prune"], config)
        figures = StepFigures(self.setup.model.config, self.setup.mesh, lora=config.train.lora)
        return fine_tune(
            self.trainer,
            lambda: self.weights.take(index - 1 if config.train.start_from == "previous" else 0),
            examples,
            config.train,
            seed=derive_seed(config.seed, index, "train"),
            label=f"round {index} train",
            saves=self.folder.training_saves(index),
            on_step=lambda record: self._log_step(index, record.step, figures(record)),
            profile=Profile(self.folder.profiles, f"train-{index:03}", steps_of(config.profile_steps)),
        )

    def _log_step(self, index: int, step: int, curves: Mapping[str, float]) -> None:
        if self.log is not None:
            self.log.log(index, "train", step, curves)

    def _log_sampling(self, index: int, sampling: Sampling, step: int, curves: Mapping[str, float]) -> None:
        if self.log is not None:
            self.log.log(index, sampling, step, curves)

    def _examples(self, index: int) -> list[Example]:
        """The round's training examples, those of earlier rounds too if train.traces_of is "all"."""
        rounds = range(1, index + 1) if self.setup.config.train.traces_of == "all" else (index,)
        traces = (judged.trace for each in rounds for judged in self.folder.training(each))
        kept = broadcast_each(
            f"round {index} training traces", ((each.id, each.name, each.token_ids) for each in traces)
        )
        questions = {question.id: question.question for question in self.setup.task.train}
        return [self.setup.prompt.example(questions[question], ids, name) for question, name, ids in kept]

    def _evaluate(self, index: int) -> Facts:
        """Samples and judges the held-out questions, then waits for the round's checkpoint."""
        sampled = sample_all(self._pass(index, "evaluate", self._test_questions(), index))
        self.weights.wait()
        return dataclasses.asdict(sampled)

    # Questions.

    def _training_questions(self, index: int) -> QuestionSet:
        """The round's num_questions: the next ones of the task, starting over after the last."""
        questions = self.setup.task.train
        if index == 0:
            return questions.only([])
        count = self.setup.config.think.num_questions or len(questions)
        start = (index - 1) * count
        indices = [(start + offset) % len(questions) for offset in range(min(count, len(questions)))]
        return questions.only([questions[each] for each in indices])

    def _test_questions(self) -> QuestionSet:
        return self.setup.task.test[: self.setup.config.evaluate.num_questions]

    # The run folder.

    def _record(self, state: RoundState, stage: Stage, facts: Facts) -> RoundState:
        """Marks a stage as done, in the state and in the run folder."""
        if self.sharing is not None:
            self.sharing.note(state.index, stage)
        state = state.with_stage(stage, facts)
        if hosts.is_first():
            self.folder.write_stages(state.index, state.stages)
        return state

    def _remove_training_saves(self, index: int) -> None:
        saves = self.folder.training_saves(index)
        if hosts.is_first() and saves.is_dir():
            saves.rmtree()

    def _remove_old_checkpoints(self, done: list[RoundState]) -> None:
        """Removes all but the newest checkpoints, the best one, and the one that every round starts from."""
        count = self.setup.config.keep_checkpoints
        if count is None or not hosts.is_first():
            return
        indices = [state.index for state in done]
        kept = {*indices[-count:], best_round(done)}
        if self.setup.config.train.start_from == "base":
            kept.add(0)
        for index in set(indices) - kept:
            if self.folder.checkpoint(index).is_dir():
                self.folder.checkpoint(index).rmtree()

    # Figures.

    def _summarize(self, state: RoundState) -> RoundState:
        """Adds the round's metrics, computed from the run folder; writing them ends the round."""
        metrics = hosts.broadcast(f"round {state.index} metrics", lambda: self._metrics(state))
        if self.log is not None:
            scalars = {
                key: value for key, value in metrics.items() if isinstance(value, float | int) and key != "round"
            }
            self.log.log(state.index, "round", state.index, scalars)
            self.folder.write_metrics(state.index, metrics)
            if (warning := warn_of_collapse(metrics)) is not None:
                say(warning)
        return dataclasses.replace(state, metrics=metrics)

    def _metrics(self, state: RoundState) -> dict[str, Any]:
        stages = state.stages
        pruned = {"num_traces": 0, "num_correct": 0, "num_strict": 0, "num_kept": 0, "num_dropped": {}}
        pruned |= {name: fact for name, fact in stages.get("prune", {}).items() if name not in ("seconds", "verdicts")}
        tested = map(WatchedAnswer.of, self.folder.traces(state.index, "evaluate"))
        answers = sorted(tested, key=lambda each: (each.id, each.sample))
        monitors = monitor(answers, self._base if state.index > 0 else {})
        verdicts = {"think": stages["prune"]["verdicts"]} if "prune" in stages else {}
        sampled = {stage: stages[stage] for stage in ("think", "evaluate") if stage in stages}
        return {
            "round": state.index,
            **dataclasses.asdict(evaluate_answers(answers, k=self.setup.config.evaluate.num_samples)),
            **to_metrics(monitors),
            **pruned,
            "verdicts": {**verdicts, "evaluate": count_labels(answers)},
            "num_contaminated": self.setup.task.num_contaminated,
            "num_prompts_too_long": {stage: facts["num_prompts_too_long"] for stage, facts in sampled.items()},
            "sampler": {stage: self._sampler_types(stage) for stage in sampled},
            "seconds": {stage: facts["seconds"] for stage, facts in stages.items()},
            "tokens": {stage: facts["tokens"] for stage, facts in stages.items() if "tokens" in facts},
            **{name: stages.get("think", {}).get(name) for name in THINK_FIGURES},
            "compilations": self.setup.compilations.take(),
        }

    @functools.cached_property
    def _base(self) -> Tallies:
        """How the base model did on the held-out questions; read once, for all rounds."""
        answers = [*map(Answer.of, self.folder.traces(0, "evaluate"))]
        evaluated = self.folder.metrics(0) or {}
        num_expected = evaluated.get("num_questions", 0) * evaluated.get("num_samples", 0)
        if len(answers) < num_expected:
            say(
                f"round 0: {num_expected - len(answers)} of {num_expected} evaluate traces are gone; changes since the "
                "base model only count the questions that are left"
            )
        return tally(answers)

    def _sampler_types(self, stage: str) -> dict[str, str]:
        """The types of weights and KV cache that a stage samples with; no resumed run changes them."""
        settings: SamplingConfig = getattr(self.setup.config, stage)
        return {"weights": settings.weights, "cache_type": settings.cache_type}


def rates(done: Sequence[RoundState]) -> dict[int, float]:
    """Pass@1 of the finished rounds, by index."""
    return {state.index: state.metrics["pass_at_1"] for state in done if state.metrics is not None}


def best_round(done: Sequence[RoundState]) -> int:
    """The index of the finished round with the highest Pass@1, the first one of equals."""
    by_round = rates(done)
    return max(by_round, key=lambda index: by_round[index])


def _timed(stage: Callable[[], Facts]) -> Facts:
    """The facts of a stage and the seconds it took."""
    started = time.monotonic()
    facts = stage()
    return {**facts, "seconds": time.monotonic() - started}
