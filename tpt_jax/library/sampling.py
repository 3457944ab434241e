"""`sample`: traces of questions, in memory."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from flax import nnx

from tpt_jax.config import PromptConfig, SamplingConfig, Seed
from tpt_jax.config_parsing import check_value, settings
from tpt_jax.errors import UserError
from tpt_jax.library.model import Model
from tpt_jax.library.tasks import Questions, as_question_set
from tpt_jax.loop.sampling import reshard
from tpt_jax.loop.setup import CONTRACT_QUESTIONS, plan_prompts
from tpt_jax.prompts import Prompt
from tpt_jax.records import QuestionSet, Trace, Traces
from tpt_jax.runtime import hosts, preemption
from tpt_jax.terminal import listed, percent, progress, say
from tpt_jax.think.engine import Engine, Statistics
from tpt_jax.think.requests import FixedSchedule
from tpt_jax.think.sampler import SamplerProgram
from tpt_jax.think.sampling_plan import SamplingPlan
from tpt_jax.think.stop_strings import StopStrings, make_stop_strings

FIELDS = tuple(field.name for field in dataclasses.fields(Trace))


def sample(
    model: Model,
    questions: Questions,
    *,
    seed: int = 0,
    stop: Sequence[str] | None = None,
    plain: bool = False,
    **options: Any,
) -> Traces[Trace]:
    """Samples traces; a trace depends only on model, seed, question and sample number, not on slots or mesh.

    Args:
      questions: a split of a task or a slice of one; or Questions, mappings with "question", or plain texts.
      stop: a trace ends before the first of these texts; those of the questions' prompt if not given.
      plain: continue each text itself, without instruction and chat template.
      options: keys of a config's `think` section: num_samples, temperature, top_k, top_p, min_p, max_prompt_tokens,
        max_new_tokens, num_slots, cache_type, weights. Lengths default to those of the questions' task.

    Returns:
      All traces, sorted by question and sample, on every host.

    Raises:
      UserError: an option is unknown or does not fit, or no prompt is short enough.
      FloatingPointError: the model's logits are not finite.
    """
    check_value("seed", seed, Seed)
    asked = as_question_set(questions)
    config = sampling_settings(SamplingConfig, asked, options)
    prompt = model.prompt(asked)
    vocab_size = model.folder.config.vocab_size
    stop = settings(PromptConfig, {"stop": stop}).stop
    if stop is None:
        stop = () if plain else prompt.stop
    stop_strings = make_stop_strings(stop, prompt.tokenizer, vocab_size)
    if not plain:
        prompt.check_contract(asked[:CONTRACT_QUESTIONS], vocab_size)
    texts = {question.id: question.question for question in asked}
    encode = prompt.plain_ids if plain else prompt.prompt_ids
    plan = plan_prompts(texts, encode, config, model.mesh, option="", stop_strings=stop_strings)
    batches = sample_batches(
        lambda: model.programs.sampler(model, plan.shape, prompt.stop_ids),
        prompt,
        plan,
        model.live_parameters,
        list(texts),
        config.temperature,
        seed=seed,
        stop_strings=stop_strings,
    )
    traces = _of_all_hosts([trace for batch in batches for trace in batch])
    order = {name: index for index, name in enumerate(texts)}
    return Traces(tuple(sorted(traces, key=lambda trace: (order[trace.id], trace.sample))), asked)


def _of_all_hosts(traces: list[Trace]) -> list[Trace]:
    if hosts.count() == 1:
        return traces
    records = [{name: getattr(trace, name) for name in FIELDS} for trace in traces]
    return [
        Trace(**{**record, "token_ids": tuple(record["token_ids"])})
        for of_host in hosts.all_gather("traces", records)
        for record in of_host
    ]


def sampling_settings(cls: type[SamplingConfig], questions: QuestionSet, options: dict[str, Any]) -> SamplingConfig:
    """The settings of a sampling call: the options, over the lengths that the questions' task needs.

    Raises:
      UserError: an option is unknown or does not fit.
    """
    if "num_questions" in options:
        raise UserError("num_questions: sample a slice of the questions instead, as task.train[:100]")
    return settings(cls, {**dataclasses.asdict(questions.generation), **options})


def sample_batches(
    compile_program: Callable[[], SamplerProgram],
    prompt: Prompt,
    plan: SamplingPlan,
    load_parameters: Callable[[], nnx.State],
    names: Sequence[str],
    temperature: float,
    *,
    seed: int,
    stop_strings: StopStrings | None = None,
    done: Collection[tuple[str, int]] = frozenset(),
) -> Iterator[list[Trace]]:
    """Yields this host's traces in batches, as they finish.

    Args:
      compile_program: returns the program for the plan's shape, under the name "sample".
      load_parameters: returns the training parameters. Both are called only if there is something to sample.
      names: ids of the prompts to sample.
      done: (id, sample) of traces that exist already.

    Raises:
      FloatingPointError: the model's logits are not finite.
      Stopped: the process was asked to stop; all finished traces were yielded.
    """
    too_long = [name for name in names if name not in plan.prompt_ids]
    if too_long:
        say(f"sample: leaving out {len(too_long)} prompts longer than max_prompt_tokens: {listed(too_long)}")
    requests = plan.requests(names, done)
    num_left = sum(len(request.samples) for request in requests)
    if not num_left:
        return
    program = compile_program()
    engine = Engine(program.slots["sample"], prompt, plan.prefix, program.layout.batch_ways, stop_strings)
    batches = engine.sample(
        reshard(program.reshards["sample"], load_parameters(), "sample"),
        FixedSchedule(requests, program.layout.batch_ways),
        seed=seed,
        round_index=0,
        temperature=temperature,
        should_stop=preemption.should_stop,
    )
    with progress("sample", len(done) + num_left, "traces", len(done)) as advance, preemption.defer():
        for traces in batches:
            advance(len(traces) * hosts.count())  # the other hosts are about as far
            yield traces
    figures = Statistics.combine(hosts.all_gather("sampling figures", dataclasses.asdict(engine.statistics)))
    say(
        f"sample: {figures.num_tokens:,} tokens, {figures.num_tokens / figures.seconds:,.0f} tokens/s, "
        f"{percent(figures.occupancy(program.slots['sample'].shape.num_slots), 0)} of slots busy while traces waited, "
        f"device idle {figures.idle_share:.1%}"
    )
