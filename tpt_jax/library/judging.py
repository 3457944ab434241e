"""`judge`, `select` and `score`: verdicts on traces, without JAX."""

import dataclasses
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from tpt_jax.checks.pool import CheckerPool
from tpt_jax.checks.registry import without_sandbox
from tpt_jax.config_parsing import check_value
from tpt_jax.errors import UserError
from tpt_jax.evaluation import Evaluation, evaluate_traces
from tpt_jax.prune import apply
from tpt_jax.prune.pipeline import Pipeline
from tpt_jax.prune.registry import DEFAULT_STEPS, parse_steps
from tpt_jax.prune.step import AnyStep
from tpt_jax.prune.summary import failed_on_all
from tpt_jax.prune.trim import trim
from tpt_jax.records import CheckerSpec, JudgedTrace, Question, QuestionSet, Trace, Traces, Verdict
from tpt_jax.tasks import Task
from tpt_jax.tasks.decontamination import normalised, normalised_texts
from tpt_jax.terminal import progress

StepsToParse = str | Sequence[str | Mapping[str, Any] | AnyStep]


def judge(
    traces: Traces[Trace] | Sequence[Trace],
    task: Task | QuestionSet | None = None,
    *,
    checker: CheckerSpec | None = None,
    num_workers: int | None = None,
    seconds_per_trace: float | None = None,
    run_code_without_sandbox: bool = False,
) -> Traces[JudgedTrace]:
    """Judges traces in worker processes, each with a time and a memory limit.

    Args:
      task: the task whose questions the traces answer; by default the questions that they were sampled for.
      checker: instead of the task's own: a name, "module:function", or a function as in `own_task`.
      num_workers: one per processor core if not given.
      seconds_per_trace: a check that takes longer is killed and its trace counts as wrong; the task's limit if not
        given.
      run_code_without_sandbox: run programs that a model wrote with your own user rights.

    Returns:
      The traces in the same order, each with its verdict.

    Raises:
      UserError: a trace answers no question of the task, or the checker cannot be used or failed on every trace.
    """
    check_value("num_workers", num_workers, PositiveInt | None)
    check_value("seconds_per_trace", seconds_per_trace, PositiveFloat | None)
    questions = _questions(traces, task)
    by_id = {question.id: question for question in questions}
    for trace in traces:
        if trace.id not in by_id:
            raise UserError(f"trace {trace.name!r}: the task has no question {trace.id!r}; give the traces' own task")
    spec = questions.checker if checker is None else checker
    if run_code_without_sandbox:
        spec = without_sandbox(spec)
    seconds = questions.seconds_per_trace if seconds_per_trace is None else seconds_per_trace
    pairs = ((by_id[trace.id], trace) for trace in traces)
    verdicts = list(judge_pairs(pairs, len(traces), spec, num_workers, seconds))
    judged = tuple(map(JudgedTrace, traces, verdicts))
    if failure := failed_on_all(judged):
        raise UserError(f"checker: {failure}; fix it, or give another one")
    return Traces(judged, questions)


def judge_pairs(
    pairs: Iterable[tuple[Question, Trace]],
    count: int,
    checker: CheckerSpec,
    num_workers: int | None,
    seconds_per_trace: float,
) -> Generator[Verdict]:
    """Yields the verdicts on traces, in order, with a progress bar; ends the workers when it is closed."""
    with (
        CheckerPool(checker, num_workers, seconds_per_trace) as pool,
        progress("judge", count, "traces") as advance,
    ):
        for verdict in pool.judge(pairs):
            yield verdict
            advance(1)


def _questions(traces: Traces[Trace] | Sequence[Trace], task: Task | QuestionSet | None) -> QuestionSet:
    """The questions that the traces answer: their own, judged as the task says; else those of the task."""
    if isinstance(task, QuestionSet):
        return task
    if isinstance(traces, Traces):
        how = traces.questions if task is None else task.train
        return dataclasses.replace(traces.questions, checker=how.checker, seconds_per_trace=how.seconds_per_trace)
    if task is None:
        raise UserError("judge: a list of traces does not say which questions it answers; give the task too")
    shared = {question.id for question in task.train} & {question.id for question in task.test}
    if ambiguous := sorted(shared & {trace.id for trace in traces}):
        raise UserError(
            f"judge: a training and a test question share the id {ambiguous[0]!r}; give task.train or task.test"
        )
    return task.train.only([*task.train, *task.test])


def select(
    judged: Traces[JudgedTrace],
    *,
    max_per_question: int | None = 1,
    max_traces: int | None = None,
    steps: StepsToParse = DEFAULT_STEPS,
    seed: int = 0,
    held_out: Iterable[QuestionSet] = (),
) -> Traces[JudgedTrace]:
    """Selects the traces to train on, as the prune stage does; unfinished ones are never kept.

    Args:
      max_per_question, max_traces: at most this many: the first samples of a question, and the first questions in an
        order drawn from the seed; None for no limit.
      steps: as prune.steps in a config: ["correct", "unique_calculations", {"shortest": {"count": 1}}].
      held_out: questions of an evaluation; their traces are not kept.

    Returns:
      The kept traces, sorted by question and sample; `num_dropped` counts the others by what dropped them: a guard
      ("unfinished", "held out", "unknown"), a step, or a limit, in this order. Steps that trim are applied to the kept
      ones, which are judged again: a trace stays whole where the verdict would change.

    Raises:
      UserError: a step or option is unknown, the traces have no verdicts or lack what a step needs, or your own step
        failed.
    """
    if not isinstance(judged, Traces) or not all(isinstance(each, JudgedTrace) for each in judged):
        raise UserError("select: the traces have no verdicts; give them as `judge` returns them")
    parsed = parse_steps(steps, "steps")
    check_value("max_per_question", max_per_question, PositiveInt | None)
    check_value("max_traces", max_traces, PositiveInt | None)
    tested = frozenset[str]().union(*(normalised_texts(questions) for questions in held_out))
    texts = {question.id: question.question for question in judged.questions}
    pipeline = Pipeline(parsed, max_per_question, max_traces, seed)
    pipeline.require()
    selected = apply.select(pipeline, judged, lambda name: normalised(texts[name]) in tested, option="steps")
    kept = trim(pipeline, selected.kept, lambda traces: _judge_again(traces, judged.questions))
    return Traces(tuple(kept), judged.questions, selected.num_dropped)


def _judge_again(traces: Sequence[Trace], questions: QuestionSet) -> Iterable[Verdict]:
    by_id = {question.id: question for question in questions}
    pairs = ((by_id[trace.id], trace) for trace in traces)
    return judge_pairs(pairs, len(traces), questions.checker, None, questions.seconds_per_trace)


def score(judged: Iterable[JudgedTrace], *, k: int = 1) -> Evaluation:
    """Pass@1, Pass@k, Maj@k and their 95% intervals over questions; rates are 0 to 1.

    Raises:
      UserError: there are no traces, or questions differ in their number of traces, or k exceeds it.
    """
    return evaluate_traces(judged, k=k)
