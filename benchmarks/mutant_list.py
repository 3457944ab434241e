"""The faults that mutants.py puts into the code, by room, with the tests that must notice them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
      file: below tpt_jax/.
      old, new: a text that stands in the file exactly once, and what replaces it.
      tests: pytest arguments, separated by spaces; at least one of these tests must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


SAMPLING = "tests/test_sampling.py"
FILTERS = "tests/test_filters.py"
GREEDY = f"{SAMPLING}::test_greedy_sampling_matches_transformers_generate"

THINK = (
    Mutant(
        "the round ignored in the sampling keys",
        "think/sampling.py",
        "jax.random.fold_in(jax.random.key(seed), round_index)",
        "jax.random.key(seed)",
        f"{SAMPLING}::test_trace_keys_fold_in_round_question_and_sample",
    ),
    Mutant(
        "the sample ignored in the sampling keys",
        "think/sampling.py",
        "jax.random.fold_in(jax.random.fold_in(round_key, question), sample)",
        "jax.random.fold_in(round_key, question)",
        f"{SAMPLING}::test_trace_keys_fold_in_round_question_and_sample",
    ),
    Mutant(
        "the position ignored in the sampling keys",
        "think/sampling.py",
        "jax.vmap(jax.random.fold_in)(keys, positions)",
        "keys",
        f"{SAMPLING}::test_traces_depend_on_seed_round_and_sample",
    ),
    Mutant(
        "questions hashed by Python, differently in every process",
        "think/sampling.py",
        'int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:4], "big")',
        "hash(question_id) % 2**32",
        f"{SAMPLING}::test_question_hashes_are_the_same_on_every_machine",
    ),
    Mutant(
        "temperature 0 not greedy",
        "think/sampling.py",
        "+ temperature * noise",
        "+ jnp.maximum(temperature, 0.1) * noise",
        f"{FILTERS}::test_temperature_zero_is_greedy",
    ),
    Mutant(
        "top_p keeps one token too many",
        "think/sampling.py",
        "num_kept = num_listed_kept + num_unlisted",
        "num_kept = 1 + num_listed_kept + num_unlisted",
        f"{FILTERS}::test_ties_by_hand",
    ),
    Mutant(
        "min_p compares probabilities, not their ratio",
        "think/sampling.py",
        "jnp.where(relative >= filters.min_p, filtered, -jnp.inf)",
        "jnp.where(jax.nn.softmax(logits / temperature) >= filters.min_p, filtered, -jnp.inf)",
        f"{FILTERS}::test_draws_follow_the_filtered_softmax",
    ),
    Mutant(
        "log-probabilities under the filters",
        "think/sampling.py",
        "chosen - jnp.log(total)",
        "chosen - jax.nn.logsumexp(filter_logits(relative, temperature, filters), axis=-1)",
        f"{FILTERS}::test_filters_match_transformers",
    ),
    Mutant(
        "log-probability without the last token",
        "think/slots.py",
        "jnp.where(busy, drawn.logprob, 0.0)",
        "jnp.where(busy & ~ends, drawn.logprob, 0.0)",
        f"{SAMPLING}::test_logprobs_match_the_full_forward_pass",
    ),
    Mutant(
        "trace limits off by one",
        "think/slots.py",
        "(length >= queue.trace_limits[trace])",
        "(length > queue.trace_limits[trace])",
        f"{SAMPLING}::test_each_trace_ends_at_its_limit",
    ),
    Mutant(
        "a trace at a stop string keeps running",
        "think/slots.py",
        "ends = ends | (stop_state == shape.num_stop_states - 1)",
        "ends = ends | (stop_state > shape.num_stop_states - 1)",
        f"{SAMPLING}::test_a_trace_ends_in_the_step_that_completes_a_stop_string",
    ),
    Mutant(
        "a finished trace overwrites the one before in the buffer",
        "think/slots.py",
        "dynamic_update_slice_in_dim(buffers[name], row, first + index, axis=0)",
        "dynamic_update_slice_in_dim(buffers[name], row, first, axis=0)",
        f"{SAMPLING}::test_each_trace_ends_at_its_limit",
    ),
    Mutant(
        "more finished traces than the buffer holds",
        "think/slots.py",
        "slots.done & (finished.count[0] + rank < shape.buffer_rows)",
        "slots.done",
        f"{SAMPLING}::test_traces_do_not_depend_on_slots_or_order",
    ),
    Mutant(
        "a prompt overwritten in the pool while it is needed",
        "think/slots.py",
        "count + shape.prefill_rows - shape.pool_rows <= oldest_needed",
        "count + shape.prefill_rows - shape.pool_rows <= oldest_needed + 1",
        f"{SAMPLING}::test_traces_do_not_depend_on_slots_or_order",
    ),
    Mutant(
        "a prompt copied from the wrong row of the pool",
        "think/slots.py",
        "pool_row = prefill[slot] % shape.pool_rows",
        "pool_row = prefill[slot]",
        f"{GREEDY}[llama]",
    ),
    Mutant(
        "a prompt longer than the window copied from its start",
        "think/cache.py",
        "prompt = jnp.take(prompt, positions, axis=axis)",
        "prompt = jax.lax.slice_in_dim(prompt, 0, size, axis=axis)",
        f"{SAMPLING}::test_logprobs_match_the_full_forward_pass[gemma2]",
    ),
    Mutant(
        "tokens that share a row of the cache written over each other",
        "think/cache.py",
        "place * new.key.shape[4])",
        "zero)",
        "tests/test_packed_cache.py",
    ),
    Mutant(
        "tokens that share a row masked in the order of their positions",
        "think/cache.py",
        "entries.reshape(len(entries), -1, row_tokens).swapaxes(1, 2)",
        "entries",
        "tests/test_packed_cache.py",
    ),
    Mutant(
        "int8 scales from a part of the weight",
        "models/decoding_weights.py",
        "jnp.abs(weight).max(axis=summed, keepdims=True)",
        "jnp.abs(weight[:, :1]).max(axis=summed, keepdims=True)",
        "tests/test_int8.py",
    ),
    Mutant(
        "cache entries off by one position",
        "think/cache.py",
        "newest = positions[:, None] - 1",
        "newest = positions[:, None] - 2",
        f"{GREEDY}[llama]",
    ),
    Mutant(
        "sliding window one token too long",
        "models/attention.py",
        "(distance >= 0) & (distance < window)",
        "(distance >= 0) & (distance <= window)",
        "tests/test_models.py::test_logits_match_transformers_beyond_the_sliding_window[gemma2]",
    ),
    Mutant(
        "all layers rotated",
        "models/transformer.py",
        "if config.rotated[index]:",
        "if True:",
        "tests/test_families.py::test_logits_match_transformers[smollm3]",
    ),
    Mutant(
        "the pattern of layers without that of rotary embeddings",
        "models/architecture.py",
        "kinds = list(zip(self.windows, self.rotated, strict=True))",
        "kinds = list(self.windows)",
        "tests/test_families.py::test_logits_match_transformers[smollm3]",
    ),
    Mutant(
        "less of the cache read than the longest trace needs",
        "think/slots.py",
        "jnp.where(busy, slots.position, 0).max()",
        "jnp.where(busy, slots.position, 0).min()",
        f"{GREEDY}[llama]",
    ),
    Mutant(
        "int8 scale from the largest value, not the largest magnitude",
        "think/cache.py",
        "jnp.abs(x).max(axis=-1)",
        "x.max(axis=-1)",
        f"{SAMPLING}::test_an_int8_cache_is_close",
    ),
    Mutant(
        "int8 values truncated instead of rounded",
        "think/cache.py",
        "jnp.round(x / scale[..., None])",
        "jnp.trunc(x / scale[..., None])",
        f"{SAMPLING}::test_int8_entries_are_within_half_a_step_of_the_written_ones",
    ),
    Mutant(
        "prompts after a shared prefix prefilled from position 0",
        "think/slots.py",
        "shape.num_prefix_tokens + columns",
        "columns",
        f"{SAMPLING}::test_a_shared_prefix_does_not_change_traces[llama]",
    ),
    Mutant(
        "tokens after a shared prefix decoded from position 0",
        "think/slots.py",
        "model.decode(slots.last_token, offset + slots.position",
        "model.decode(slots.last_token, slots.position",
        f"{SAMPLING}::test_a_shared_prefix_does_not_change_traces[llama]",
    ),
    Mutant(
        "draws after a shared prefix keyed by the position in the rest",
        "think/slots.py",
        "position = shape.num_prefix_tokens + slots.position",
        "position = slots.position",
        f"{SAMPLING}::test_a_shared_prefix_does_not_change_traces[llama]",
    ),
    Mutant(
        "a shared prefix that leaves nothing of the shortest prompt",
        "think/sampling_plan.py",
        "longest = min(map(len, prompts)) - 1",
        "longest = min(map(len, prompts))",
        f"{SAMPLING}::test_a_shared_prefix_leaves_a_token_of_the_shortest_prompt",
    ),
    Mutant(
        "prompts of exactly the greatest length left out",
        "think/sampling_plan.py",
        "len(ids) <= max_prompt_tokens",
        "len(ids) < max_prompt_tokens",
        f"{SAMPLING}::test_only_prompts_that_fit_and_samples_that_are_missing_are_requested",
    ),
    Mutant(
        "a cancelled trace sampled to its end",
        "think/slots.py",
        " | queue.is_cancelled[trace]",
        "",
        f"{SAMPLING}::test_traces_do_not_depend_on_when_they_are_requested",
    ),
    Mutant(
        "prefills that are not a full batch left out of the next one",
        "think/slots.py",
        "begun // shape.prefill_rows * shape.prefill_rows, begun",
        "begun, begun",
        f"{SAMPLING}::test_traces_do_not_depend_on_when_they_are_requested",
    ),
    Mutant(
        "finished samples sampled again",
        "think/sampling_plan.py",
        "if (name, sample) not in done",
        "if (name, str(sample)) not in done",
        f"{SAMPLING}::test_only_prompts_that_fit_and_samples_that_are_missing_are_requested",
    ),
    Mutant(
        "missing samples numbered from 0",
        "think/requests.py",
        "arrays.trace_samples[first:end] = request.samples",
        "arrays.trace_samples[first:end] = range(len(request.samples))",
        f"{SAMPLING}::test_remaining_traces_are_the_same_on_resume",
    ),
    Mutant(
        "the stop token kept in token_ids",
        "think/engine.py",
        "int(finished.length[row]) - stopped]",
        "int(finished.length[row])]",
        f"{GREEDY}[llama]",
    ),
    Mutant(
        "the seconds of all hosts added up",
        "think/engine.py",
        "total[name] /= len(hosts)",
        "total[name] /= 1",
        f"{SAMPLING}::test_hosts_sample_at_the_same_time",
    ),
)

PRUNE_TESTS = "tests/test_prune.py"
PRUNE_FILE_TESTS = "tests/test_prune_file.py"
PIPELINE = "tests/test_pipeline.py"
PRUNE_STEPS = "tests/test_prune_steps.py"
TRIM = "tests/test_trim.py"
EVALUATE = "tests/test_evaluate.py"

PRUNE_AND_EVALUATION = (
    Mutant(
        "questions in the order of their ids",
        "prune/order.py",
        'f"{seed}/{name}"',
        'f"{name}"',
        f"{PIPELINE}::test_the_order_of_questions_is_random_and_the_same_everywhere",
    ),
    Mutant(
        "traces of unknown verdict kept",
        "prune/pipeline.py",
        "return UNKNOWN if candidate.verdict.unknown else None",
        "return None",
        f"{PIPELINE}::test_every_dropped_trace_is_counted_under_its_first_reason",
    ),
    Mutant(
        "truncated traces kept",
        "prune/pipeline.py",
        '    if candidate.finish_reason != "stop":\n        return UNFINISHED\n',
        "",
        f"{PIPELINE}::test_without_limits_everything_usable_is_kept_in_order",
    ),
    Mutant(
        "held-out traces kept",
        "prune/pipeline.py",
        "is_tested = is_held_out(name)",
        "is_tested = False",
        f"{PIPELINE}::test_every_dropped_trace_is_counted_under_its_first_reason",
    ),
    Mutant(
        "the last samples of a question kept",
        "prune/pipeline.py",
        "for each in traces[: self.max_per_question]]",
        "for each in traces[-(self.max_per_question or 0) :]]",
        f"{PIPELINE}::test_the_first_samples_and_the_first_questions_are_kept",
    ),
    Mutant(
        "a question's choice without its limit",
        "prune/pipeline.py",
        "return left[: self.max_per_question]",
        "return left",
        f"{PIPELINE}::test_a_questions_choice_agrees_with_the_rounds",
    ),
    Mutant(
        "a step's second place counted with its first",
        "prune/pipeline.py",
        'name if count == 1 else f"{name} ({count})"',
        "name",
        f"{PIPELINE}::test_steps_apply_in_order_and_a_second_one_of_a_name_is_counted_alone",
    ),
    Mutant(
        "stored traces without scores accepted",
        "prune/apply.py",
        "if texts and not is_there:",
        "if False:",
        f"{PIPELINE}::test_traces_that_lack_what_a_step_needs_are_refused",
    ),
    Mutant(
        "equal texts told apart by their length",
        "prune/steps/texts.py",
        "return checksum(trace.completion)",
        "return len(trace.completion)",
        f"{PRUNE_STEPS}::test_the_first_of_each_text_or_calculation_is_kept",
    ),
    Mutant(
        "all traces without equations taken for one",
        "prune/steps/texts.py",
        ' if found else f"text:{trace.completion}"',
        "",
        f"{PRUNE_STEPS}::test_the_first_of_each_text_or_calculation_is_kept",
    ),
    Mutant(
        "one of a tie taken for the majority",
        "prune/steps/agreement.py",
        "if first[1] == second[1]:",
        "if not first[1]:",
        f"{PRUNE_STEPS}::test_the_majority_has_more_votes_than_any_other_answer",
    ),
    Mutant(
        "the pass rate of what is left",
        "prune/steps/agreement.py",
        "for each in group.sampled if",
        "for each in group.candidates if",
        f"{PRUNE_STEPS}::test_the_pass_rate_is_that_of_all_samples_wherever_the_step_stands",
    ),
    Mutant(
        "the surprisal of all tokens",
        "prune/steps/scores.py",
        "trace.token_ends)[:1]",
        "trace.token_ends)",
        f"{PRUNE_STEPS}::test_surprisal_is_that_of_the_first_token_of_each_step",
    ),
    Mutant(
        "farthest-first by a distance out of date",
        "prune/steps/diversity.py",
        "if -distance > nearest[index]:",
        "if False:",
        f"{PRUNE_STEPS}::test_farthest_first_against_all_distances",
    ),
    Mutant(
        "a draw that the seed does not change",
        "prune/steps/draws.py",
        "draw(group.seed, ",
        "draw(0, ",
        f"{PRUNE_STEPS}::test_a_draw_of_some_gives_each_trace_the_same_chance",
    ),
    Mutant(
        "a number after a number in one equation",
        "prune/calculations.py",
        "or is_next:",
        "or False:",
        f"{PRUNE_STEPS}::test_equations_are_read_however_they_are_written",
    ),
    Mutant(
        "the step with the answer dropped",
        "prune/steps/trims.py",
        "step[1] <= start or step[0] >= end",
        "True",
        f"{TRIM}::test_steps_of_lowest_entropy_go_as_long_as_the_share_is_left",
    ),
    Mutant(
        "steps dropped beyond the share",
        "prune/steps/trims.py",
        "if num_left < self.share * len(trace.token_ends):",
        "if False:",
        f"{TRIM}::test_the_steps_dropped_are_the_first_by_entropy_that_fit",
    ),
    Mutant(
        "a trimmed trace with another verdict kept",
        "prune/trim.py",
        "if index in trimmed and is_same(verdicts[index], each.verdict)",
        "if index in trimmed",
        f"{TRIM}::test_a_trace_whose_verdict_would_change_stays_whole",
    ),
    Mutant(
        "tokens that end inside a character after it",
        "prompts.py",
        "whole = text.rstrip(BROKEN_CHARACTER)",
        "whole = text",
        f"{TRIM}::test_token_ends_are_the_lengths_of_decoded_prefixes",
    ),
    Mutant(
        "a checker that failed once said to have failed on every trace",
        "prune/summary.py",
        "not all(reason.startswith(CHECKERS_FAULT) for reason in reasons)",
        "not any(reason.startswith(CHECKERS_FAULT) for reason in reasons)",
        f"{PRUNE_TESTS}::test_a_checker_that_fails_on_some_traces_is_not_said_to_fail_on_all",
    ),
    Mutant(
        "interval with the population's variance",
        "evaluation.py",
        "ddof=1",
        "ddof=0",
        f"{EVALUATE}::test_the_interval_is_the_mean_and_its_standard_error",
    ),
    Mutant(
        "pass_at_k as if drawn with replacement",
        "evaluation.py",
        "math.comb(num_samples - num_right, k) / math.comb(num_samples, k)",
        "(1 - num_right / num_samples) ** k",
        f"{EVALUATE}::test_figures_of_two_questions",
    ),
    Mutant(
        "traces without an answer vote",
        "evaluation.py",
        "for judged in traces if judged.verdict.extracted is not None)",
        "for judged in traces)",
        f"{EVALUATE}::test_maj_at_k_breaks_ties_at_random",
    ),
    Mutant(
        "the first of tied answers wins",
        "evaluation.py",
        "sum(answer in right for answer in leaders) / len(leaders) if leaders else 0.0",
        "float(leaders[0] in right) if leaders else 0.0",
        f"{EVALUATE}::test_maj_at_k_breaks_ties_at_random",
    ),
    Mutant(
        "questions with unreadable answers counted as wrong",
        "evaluation.py",
        "[traces for traces in by_question.values() if not any(trace.verdict.unknown for trace in traces)]",
        "[*by_question.values()]",
        f"{EVALUATE}::test_strict_rates_and_counts_leave_unreadable_questions_out",
    ),
)

TRAINING = "tests/test_training.py"
PACKING = "tests/test_packing.py"
OPTIMIZER = "tests/test_optimizer.py"
TORCH_LOOP = f"{TRAINING}::test_losses_of_twenty_steps_equal_a_torch_loop"

TRAIN = (
    Mutant(
        "steps after a non-finite one applied again",
        "train/step.py",
        "is_finite = state.is_finite & jnp.isfinite(metrics.loss)",
        "is_finite = jnp.isfinite(metrics.loss)",
        f"{TRAINING}::test_after_a_non_finite_loss_no_later_step_changes_anything",
    ),
    Mutant(
        "a non-finite gradient applied",
        "train/step.py",
        " & jnp.isfinite(metrics.grad_norm)",
        "",
        f"{TRAINING}::test_a_non_finite_gradient_of_a_finite_loss_changes_nothing",
    ),
    Mutant(
        "micro-batches averaged, whatever their tokens",
        "train/step.py",
        "return gradients, loss, micro.loss_weights.sum()",
        "return (*jax.tree.map(lambda x: x / micro.loss_weights.sum(), (gradients, loss)), jnp.float32(1))",
        f"{TRAINING}::test_gradients_are_weighted_by_tokens_across_micro_batches",
    ),
    Mutant(
        "packed traces see each other",
        "train/step.py",
        "            micro.segment_ids,\n",
        "            jnp.minimum(micro.segment_ids, 1),\n",
        f"{TORCH_LOOP}[llama]",
    ),
    Mutant(
        "loss on the prompt",
        "train/data.py",
        "columns.start + example.num_prompt - 1 : columns.stop",
        "columns",
        f"{PACKING}::test_an_epoch_has_every_example_once_with_correct_masks",
    ),
    Mutant(
        "positions not reset for each packed trace",
        "train/data.py",
        "np.arange(row_length(example)), segment",
        "np.arange(columns.start, columns.stop), segment",
        f"{PACKING}::test_an_epoch_has_every_example_once_with_correct_masks",
    ),
    Mutant(
        "every epoch in the same order",
        "train/data.py",
        ".repeat(num_epochs)",
        ".repeat(num_epochs, reseed_each_epoch=False)",
        f"{PACKING}::test_each_epoch_has_its_own_order_and_a_seed_repeats_it",
    ),
    Mutant(
        "the last, incomplete batch left out",
        "train/data.py",
        "drop_remainder=False",
        "drop_remainder=True",
        f"{PACKING}::test_an_epoch_has_every_example_once_with_correct_masks",
    ),
    Mutant(
        "a row filled beyond its capacity",
        "train/data.py",
        "bisect.bisect_left(free, (lengths[index], -1))",
        "bisect.bisect_left(free, (lengths[index] - 1, -1))",
        f"{PACKING}::test_rows_have_every_example_once_and_no_two_rows_would_fit_in_one",
    ),
    Mutant(
        "traces of exactly a row's length left out",
        "train/data.py",
        "if row_length(example) <= sequence_length]",
        "if row_length(example) < sequence_length]",
        f"{PACKING}::test_examples_longer_than_a_row_are_left_out_not_truncated",
    ),
    Mutant(
        "weight decay on norms",
        "train/optimizer.py",
        "lambda axes: not VECTOR_AXES.intersection(axes))",
        "lambda axes: True)",
        f"{OPTIMIZER}::test_weight_decay_shrinks_every_weight_except_norms_and_biases",
    ),
    Mutant(
        "warm-up one step ahead",
        "train/optimizer.py",
        "config.learning_rate * step / max(1, warmup)",
        "config.learning_rate * (step + 1) / max(1, warmup)",
        f"{OPTIMIZER}::test_learning_rate_at_chosen_steps",
    ),
    Mutant(
        "gradients not clipped",
        "train/optimizer.py",
        "optax.clip_by_global_norm(config.max_grad_norm)",
        "optax.identity()",
        f"{TORCH_LOOP}[llama]",
    ),
    Mutant(
        "no gradient through the soft cap",
        "train/linear_cross_entropy.py",
        "return gradient if cap is None else gradient * (1 - (logits / cap) ** 2)",
        "return gradient",
        "tests/test_loss.py",
    ),
    Mutant(
        "a vocabulary that does not divide over the devices not padded",
        "train/linear_cross_entropy.py",
        "self._padding = -len(table) % options.layout.ways(options.embed_axes)",
        "self._padding = 0 * len(table)",
        "tests/test_loss.py",
    ),
    Mutant(
        "focal loss with the complement's weight",
        "train/loss.py",
        "(1 - jnp.exp(-nll)) ** config.focal_gamma * nll",
        "jnp.exp(-nll) ** config.focal_gamma * nll",
        "tests/test_loss.py",
    ),
    Mutant(
        "tokens before a resume not counted",
        "train/fine_tuning.py",
        'TokenCounts(**saved.progress["counts"]) if saved else TokenCounts()',
        "TokenCounts()",
        f"{TRAINING}::test_killed_within_an_epoch_it_resumes_with_the_next_batch",
    ),
    Mutant(
        "a resumed training repeats the first batches",
        "train/fine_tuning.py",
        'self._batches.set_state(saved.progress["iterator"])',
        "pass",
        f"{TRAINING}::test_killed_within_an_epoch_it_resumes_with_the_next_batch",
    ),
    Mutant(
        "a training stopped after its last step",
        "train/fine_tuning.py",
        "stop = step + 1 < self.num_steps and self._should_stop()",
        "stop = self._should_stop()",
        f"{TRAINING}::test_a_request_to_stop_after_the_last_step_comes_too_late",
    ),
    Mutant(
        "a training stopped without a save",
        "train/fine_tuning.py",
        "(stop or self._checkpoints.is_due(step + 1))",
        "self._checkpoints.is_due(step + 1)",
        f"{TRAINING}::test_a_corrupt_save_is_skipped_for_the_one_before",
    ),
)

POOL = "tests/test_pool.py"
HANG_OR_DIE = f"{POOL}::test_a_checker_that_hangs_dies_or_eats_memory_costs_one_trace[name]"

ANNOUNCE = "tests/test_announce.py"

CHECKS = (
    Mutant(
        "an earlier announcement taken where the last one holds nothing",
        "checks/answers/extract.py",
        """        elif isinstance(value, Missing):
            return value
        elif any""",
        """        elif isinstance(value, Missing):
            continue
        elif any""",
        ANNOUNCE,
    ),
    Mutant(
        "a denied answer cancels nothing",
        "checks/answers/extract.py",
        "denied += [] if isinstance(value, Missing) else [value]",
        "continue",
        ANNOUNCE,
    ),
    Mutant(
        "words outrank a format",
        "checks/answers/extract.py",
        "if not reader.are_same(other_value, value):",
        "if False:",
        ANNOUNCE,
    ),
    Mutant(
        "a cut trace read at its end",
        "checks/answers/extract.py",
        " or not is_finished or is_open(text):",
        " or is_open(text):",
        "tests/test_answers.py::test_a_trace_that_was_cut_must_announce_its_answer",
    ),
    Mutant(
        "an open trace read at its end",
        "checks/answers/extract.py",
        " or not is_finished or is_open(text):",
        " or not is_finished:",
        ANNOUNCE,
    ),
    Mutant(
        "a doubt never takes an answer back",
        "checks/answers/extract.py",
        "return answer if is_upheld else Missing.TAKEN_BACK",
        "return answer",
        ANNOUNCE,
    ),
    Mutant(
        "invented turns read",
        "checks/answers/extract.py",
        "end = end_of_turn(text, announcements[0].end)",
        "end = len(text)",
        ANNOUNCE,
    ),
    Mutant(
        "unclosed reasoning read",
        "checks/answers/turns.py",
        "opened = completion.find(_OPEN_THINKING, start)",
        "opened = -1",
        ANNOUNCE,
    ),
    Mutant(
        "any reference met by a rounded answer",
        "checks/answers/number.py",
        "return decimals >= MIN_ROUNDED_DECIMALS and",
        "return",
        "tests/test_answers.py::test_verdicts",
    ),
    Mutant(
        "letter case ignored in formulas",
        "checks/answers/latex.py",
        "    if _differ_in_case(reference, answer):\n        return False\n",
        "",
        "tests/test_math.py::test_different_answers_are_wrong",
    ),
    Mutant(
        "the time limit of a trace granted for each one of its chunk",
        "checks/pool.py",
        "worker.pipe.poll(seconds_per_trace + SECONDS_BETWEEN_MESSAGES)",
        "worker.pipe.poll(seconds_per_trace * len(pairs) + SECONDS_BETWEEN_MESSAGES)",
        f"{POOL}::test_the_time_limit_is_that_of_one_trace",
    ),
    Mutant(
        "a trace whose worker died counted as right",
        "checks/pool.py",
        "failed[index] = Verdict.wrong(failure.reason)",
        "failed[index] = Verdict(None, strict=True, correct=True)",
        HANG_OR_DIE,
    ),
    Mutant(
        "the wrong trace blamed for a failed worker",
        "checks/pool.py",
        "index = start + failure.index",
        "index = start",
        HANG_OR_DIE,
    ),
    Mutant(
        "no second chance after a worker's death",
        "checks/pool.py",
        "if failure.reason != DIED or index in suspects:",
        "if failure.reason:",
        f"{POOL}::test_a_worker_killed_from_outside_costs_no_trace",
    ),
    Mutant(
        "verdicts of the last chunk first",
        "checks/pool.py",
        "[verdict for future in futures for verdict in future.result()]",
        "[verdict for future in reversed(futures) for verdict in future.result()]",
        f"{POOL}::test_verdicts_come_in_the_order_of_the_pairs",
    ),
    Mutant(
        "any value of a user's checker taken for true or false",
        "checks/registry.py",
        "if value not in (True, False):",
        "if value is ...:",
        f"{PRUNE_TESTS}::test_a_checker_that_fails_on_every_trace_is_reported",
    ),
    Mutant(
        "an unreadable reference answer counted as wrong",
        "checks/registry.py",
        "return Verdict.unreadable()",
        'return Verdict.wrong("unreadable reference answer")',
        f"{POOL}::test_what_a_function_may_return",
    ),
)

HOSTS = "tests/test_hosts.py"
EXCHANGE = f"{HOSTS}::test_both_hosts_get_the_same_values_and_the_same_error"

RUNTIME = (
    Mutant(
        "the hosts' shares overlap",
        "runtime/hosts.py",
        "items[jax.process_index() :: count()]",
        "items[jax.process_index() :]",
        f"{EXCHANGE}[exchange]",
    ),
    Mutant(
        "the first host keeps the object it broadcasts",
        "runtime/hosts.py",
        'exchange.post("value", value)\n    return _through_json(value)',
        'exchange.post("value", value)\n    return value',
        f"{EXCHANGE}[exchange]",
    ),
    Mutant(
        "all_gather in the wrong order",
        "runtime/hosts.py",
        "[value, *(exchange.receive(str(host), sender=host) for host in range(1, count()))]",
        "[*(exchange.receive(str(host), sender=host) for host in range(1, count())), value]",
        f"{EXCHANGE}[exchange]",
    ),
    Mutant(
        "hosts in different exchanges not noticed",
        "runtime/hosts.py",
        "if reached is not None and reached != self.name:",
        "if reached is not None and not self.name:",
        f"{EXCHANGE}[diverged]",
    ),
    Mutant(
        "messages without the name of their exchange",
        "runtime/hosts.py",
        'f"exchange/{self.number}/{self.name}/{label}/{field}"',
        'f"exchange/{self.number}/{label}/{field}"',
        f"{EXCHANGE}[diverged]",
    ),
    Mutant(
        "the last chunk of a message not sent",
        "runtime/hosts.py",
        "math.ceil(len(data) / CHUNK)",
        "len(data) // CHUNK",
        f"{EXCHANGE}[exchange]",
    ),
    Mutant(
        "a broadcast on a single host without JSON",
        "runtime/hosts.py",
        "return _through_json(make())",
        "return make()",
        f"{HOSTS}::test_a_single_host_gets_its_values_as_others_would",
    ),
    Mutant(
        "all_gather on a single host without JSON",
        "runtime/hosts.py",
        "return [_through_json(value)]",
        "return [value]",
        f"{HOSTS}::test_a_single_host_gets_its_values_as_others_would",
    ),
)

RUN_FOLDER = "tests/test_run_folder.py"
BUCKET = "tests/test_bucket.py"
RECOVERY = "tests/test_recovery.py"
ROUNDS = "tests/test_rounds.py"
STAGES = "tests/test_stages.py"

LOOP = (
    Mutant(
        "seeds by sum instead of hash",
        "loop/seeds.py",
        'return int.from_bytes(digest[:4], "big")',
        "return (seed + round_index + len(purpose)) % 2**32",
        ROUNDS,
    ),
    Mutant(
        "one seed for all purposes of a round",
        "loop/seeds.py",
        'f"{seed}/{round_index}/{purpose}"',
        'f"{seed}/{round_index}"',
        ROUNDS,
    ),
    Mutant(
        "selection with the run's seed in every round",
        "loop/on_demand.py",
        'derive_seed(config.seed, round_index, "select")',
        "config.seed",
        STAGES,
    ),
    Mutant(
        "a broken checkpoint not removed",
        "loop/recovery.py",
        "            folder.checkpoint(state.index).rmtree()",
        "            pass",
        RECOVERY,
    ),
    Mutant(
        "the round of a broken checkpoint still marked as trained",
        "loop/recovery.py",
        "    state = state.without_training()",
        "",
        RECOVERY,
    ),
    Mutant(
        "the checkpoint of a round that lacks its evaluation not verified",
        "loop/recovery.py",
        "return {first.index}",
        "return set()",
        RECOVERY,
    ),
    Mutant(
        "the checkpoint that every round starts from not verified",
        "loop/recovery.py",
        '0 if config.train.start_from == "base" else first.index - 1',
        "first.index - 1",
        RECOVERY,
    ),
    Mutant(
        "a training that ended just before the kill done again",
        "loop/recovery.py",
        'if "train" not in stages and is_complete(checkpoint):',
        'if "train" in stages and is_complete(checkpoint):',
        RECOVERY,
    ),
    Mutant(
        "keep_checkpoints drops the best",
        "loop/rounds.py",
        "kept = {*indices[-count:], best_round(done)}",
        "kept = {*indices[-count:]}",
        ROUNDS,
    ),
    Mutant(
        "keep_checkpoints drops the one every round starts from",
        "loop/rounds.py",
        "kept.add(0)",
        "kept.add(1)",
        ROUNDS,
    ),
    Mutant(
        "training saves not removed",
        "loop/rounds.py",
        "saves.rmtree()",
        "pass",
        ROUNDS,
    ),
    Mutant(
        "a round evaluates the model before its training",
        "loop/rounds.py",
        '"evaluate", self._test_questions(), lambda: self.weights.lend(index)',
        '"evaluate", self._test_questions(), lambda: self.weights.lend(index - 1)',
        ROUNDS,
    ),
    Mutant(
        "a training recorded before its checkpoint is complete",
        "loop/rounds.py",
        "        self.weights.wait()\n        if trained is not None:",
        "        if trained is not None:",
        f"{ROUNDS}::test_a_training_is_recorded_once_its_checkpoint_is_complete",
    ),
    Mutant(
        "every round asks the same questions",
        "loop/rounds.py",
        "start = (index - 1) * count",
        "start = 0",
        ROUNDS,
    ),
    Mutant(
        "each round starts from the base model",
        "loop/rounds.py",
        'index - 1 if config.train.start_from == "previous" else 0',
        "0",
        ROUNDS,
    ),
    Mutant(
        "a training on all rounds without the newest traces",
        "loop/rounds.py",
        "range(1, index + 1) if",
        "range(1, index) if",
        ROUNDS,
    ),
    Mutant(
        "a run folder accepts another seed",
        "loop/run_folder.py",
        'r"num_rounds|early_stop|',
        'r"num_rounds|seed|early_stop|',
        f"{RUN_FOLDER}::test_settings_that_change_results_are_refused",
    ),
    Mutant(
        "the folder of an evaluation accepted for a run",
        "loop/run_folder.py",
        'if text.startswith(_header("eval")) != (verb == "eval"):',
        "if not text:",
        f"{RUN_FOLDER}::test_run_and_eval_refuse_each_others_folders",
    ),
    Mutant(
        "the metrics line of a repeated step kept",
        "loop/recovery.py",
        'line["step"] < num_saved[index]',
        'line["step"] <= num_saved[index]',
        RECOVERY,
    ),
    Mutant(
        "a resumed host overwrites its traces",
        "loop/run_folder.py",
        'int(written[-1].stem.rpartition("-")[2]) + 1 if written else 0',
        "0",
        f"{BUCKET}::test_a_run_is_written_and_resumed",
    ),
    Mutant(
        "hosts overwrite each other's traces",
        "loop/run_folder.py",
        'TraceWriter(folder, f"{sampling}-{host:03}", itertools.count(first))',
        'TraceWriter(folder, f"{sampling}-000", itertools.count(first))',
        f"{BUCKET}::test_a_run_is_written_and_resumed",
    ),
    Mutant(
        "traces in the order of their files",
        "loop/run_folder.py",
        "return sorted(judged, key=lambda judged: (judged.trace.id, judged.trace.sample))",
        "return judged",
        f"{BUCKET}::test_a_run_is_written_and_resumed",
    ),
    Mutant(
        "verdicts given to the traces in reverse",
        "loop/sampling.py",
        "map(JudgedTrace, traces, verdicts)",
        "map(JudgedTrace, traces, verdicts[::-1])",
        ROUNDS,
    ),
    Mutant(
        "the last batch before a stop lost",
        "loop/sampling.py",
        "    except Stopped as error:\n        stopped = error",
        "    except Stopped as error:\n        raise error",
        ROUNDS,
    ),
    Mutant(
        "strict verdicts counted as the correct ones",
        "loop/selection.py",
        '"num_correct": sum(trace.verdict.correct for trace in needed)',
        '"num_correct": sum(trace.verdict.strict for trace in needed)',
        ROUNDS,
    ),
    Mutant(
        "traces in the run folder sampled again",
        "loop/sampling.py",
        "plan.requests(sampling_pass.fitting(), done)",
        "plan.requests(sampling_pass.fitting(), set())",
        STAGES,
    ),
    Mutant(
        "every round samples with the same keys",
        "loop/sampling.py",
        "        round_index=sampling_pass.round_index,\n        temperature",
        "        round_index=0,\n        temperature",
        STAGES,
    ),
    Mutant(
        "the evaluate stage at the think stage's temperature",
        "loop/sampling.py",
        "temperature=sampling_pass.settings.temperature",
        "temperature=setup.config.think.temperature",
        STAGES,
    ),
    Mutant(
        "hosts without a common run folder not noticed",
        "loop/sampling.py",
        "if num_found < num_expected:",
        "if not num_found:",
        STAGES,
    ),
    Mutant(
        "a run with a checker that fails on every trace",
        "loop/sampling.py",
        "if failure := failed_on_all(judged):",
        "if failure := failed_on_all([]):",
        STAGES,
    ),
    Mutant(
        "selection in a run without its limit per question",
        "prune/pipeline.py",
        "cls(config.steps, config.max_per_question, config.max_traces, seed)",
        "cls(config.steps, None, config.max_traces, seed)",
        STAGES,
    ),
    Mutant(
        "weights that were taken are still held",
        "loop/weights.py",
        "        self._held = None\n        return parameters",
        "        return parameters",
        ROUNDS,
    ),
    Mutant(
        "weights lent without moving them to the hosts",
        "loop/weights.py",
        'in_memory(parameters, "pinned_host") if offload else parameters',
        "parameters",
        ROUNDS,
    ),
    Mutant(
        "another round's weights given out",
        "loop/weights.py",
        "if self._held is not None and self._held.round_index == round_index:",
        "if self._held is not None:",
        ROUNDS,
    ),
    Mutant(
        "a checkpoint read before it is complete",
        "loop/weights.py",
        "        self.wait()\n",
        "",
        ROUNDS,
    ),
    Mutant(
        "test questions left out for an unreadable training question",
        "loop/setup.py",
        "unreadable, first=len(task.train))",
        "unreadable, first=0)",
        "tests/test_tasks.py::test_leaving_out_a_training_question_keeps_the_test_question_with_its_id",
    ),
)

CHECKPOINTS_TESTS = "tests/test_checkpoints.py"

CHECKPOINTS = (
    Mutant(
        "checksums of sizes only",
        "checkpoints/checksums.py",
        "zlib.crc32(chunk, crc)",
        "crc",
        f"{CHECKPOINTS_TESTS}::test_every_damaged_file_is_named",
    ),
    Mutant(
        "checksums of the last chunk only",
        "checkpoints/checksums.py",
        "zlib.crc32(chunk, crc)",
        "zlib.crc32(chunk)",
        f"{CHECKPOINTS_TESTS}::test_a_checksum_covers_the_whole_of_a_file_read_in_chunks",
    ),
    Mutant(
        "checkpoints loaded without verifying them",
        "checkpoints/model_folder.py",
        "        if verify:\n",
        "        if not verify:\n",
        f"{CHECKPOINTS_TESTS}::test_a_checkpoint_without_checksums_was_cut_short",
    ),
    Mutant(
        "only the newest save of a training kept",
        "checkpoints/training.py",
        "max_to_keep=2",
        "max_to_keep=1",
        f"{TRAINING}::test_a_corrupt_save_is_skipped_for_the_one_before",
    ),
    Mutant(
        "a training resumed from the older of its saves",
        "checkpoints/training.py",
        "sorted(self._manager.all_steps(), reverse=True)",
        "sorted(self._manager.all_steps())",
        f"{CHECKPOINTS_TESTS}::test_a_training_resumes_from_its_newest_intact_save",
    ),
    Mutant(
        "a broken save left in place",
        "checkpoints/training.py",
        "self._manager.delete(step)",
        "pass",
        f"{CHECKPOINTS_TESTS}::test_a_training_resumes_from_its_newest_intact_save",
    ),
    Mutant(
        "remains of a killed checkpoint left in place",
        "checkpoints/writer.py",
        "left = unfinished_folder(path) or (",
        "left = (",
        f"{CHECKPOINTS_TESTS}::test_remains_of_a_killed_process_are_removed",
    ),
)

PROMPTS = "tests/test_prompts.py"
CONTRACT = f"{PROMPTS}::test_the_samplers_prompt_is_the_prefix_of_the_training_example"
TASKS = "tests/test_tasks.py"
LIBRARY_TESTS = "tests/test_library.py"

PROMPTS_TASKS_IO = (
    Mutant(
        "the end of turn not trained",
        "prompts.py",
        "Example((*prompt, *completion_ids, self.end_of_turn), len(prompt), id)",
        "Example((*prompt, *completion_ids), len(prompt), id)",
        CONTRACT,
    ),
    Mutant(
        "sampled tokens tokenized again",
        "prompts.py",
        "Example((*prompt, *completion_ids, self.end_of_turn), len(prompt), id)",
        "Example((*prompt, *self._encode(self.text(completion_ids)), self.end_of_turn), len(prompt), id)",
        f"{PROMPTS}::test_sampled_ids_are_trained_on_as_they_are",
    ),
    Mutant(
        "EOS trained in place of the template's end of turn",
        "prompts.py",
        "self.end_of_turn = self._find_end_of_turn()",
        "self.end_of_turn = tokenizer.eos_token_id",
        f"{PROMPTS}::test_the_end_of_turn_is_the_templates_not_eos",
    ),
    Mutant(
        "BOS twice in a plain prompt",
        "prompts.py",
        "(*(() if bos is None else (bos,)), *self._encode(text))",
        "(*(() if bos is None else (bos, bos)), *self._encode(text))",
        f"{PROMPTS}::test_a_plain_prompt_is_bos_and_the_text",
    ),
    Mutant(
        "a template that writes BOS twice accepted",
        "prompts.py",
        "prompt[:2] == (bos, bos)",
        "prompt[:2] == (bos, -1)",
        f"{PROMPTS}::test_a_template_that_breaks_the_contract_is_refused",
    ),
    Mutant(
        "the prompt depends on today's date",
        "prompts.py",
        "            date_string=DATE,\n",
        "",
        f"{PROMPTS}::test_the_prompt_does_not_depend_on_the_day",
    ),
    Mutant(
        "shots without the instruction",
        "prompts.py",
        "if self.instruction else asked",
        "if self.instruction and answered is None else asked",
        f"{PROMPTS}::test_shots_precede_the_question",
    ),
    Mutant(
        "decontamination without casefold",
        "tasks/decontamination.py",
        ".casefold()",
        "",
        f"{TASKS}::test_a_test_question_is_not_trained_on_in_any_spelling",
    ),
    Mutant(
        "decontamination without Unicode's normal form",
        "tasks/decontamination.py",
        'unicodedata.normalize("NFKC", text)',
        "text",
        f"{TASKS}::test_a_test_question_is_not_trained_on_in_any_spelling",
    ),
    Mutant(
        "decontamination ignores operators",
        "tasks/decontamination.py",
        r'rf"\w+|[^\w\s{PUNCTUATION}]"',
        r'r"\w+"',
        f"{TASKS}::test_a_test_question_is_not_trained_on_in_any_spelling",
    ),
    Mutant(
        "a link replaced by the file written through it",
        "io/files.py",
        "path = to_path(os.path.realpath(path))",
        "path = to_path(path)",
        f"{PRUNE_TESTS}::test_an_output_link_is_followed",
    ),
    Mutant(
        "the remains of a failed write left in place",
        "io/files.py",
        "temporary.unlink(missing_ok=True)",
        "pass",
        f"{RUN_FOLDER}::test_a_failed_write_leaves_the_old_file_and_nothing_else",
    ),
    Mutant(
        "judging goes on after too many broken lines",
        "io/record_files.py",
        "if num_broken <= max_broken:",
        "if max_broken:",
        f"{PRUNE_FILE_TESTS}::test_after_too_many_broken_lines_no_more_are_judged",
    ),
    Mutant(
        "a truncated gzip file a failure of many lines",
        "io/record_formats.py",
        "except (EOFError, gzip.BadGzipFile, zlib.error)",
        "except (gzip.BadGzipFile, zlib.error)",
        f"{PRUNE_FILE_TESTS}::test_a_damaged_gzip_file_is_a_mistake_of_one_line",
    ),
    Mutant(
        "broken records left out without a word",
        "io/record_files.py",
        "    if num_broken:\n        say(",
        "    if not count:\n        say(",
        f"{PRUNE_TESTS}::test_a_few_broken_lines_are_named_and_left_out",
    ),
    Mutant(
        "the answer no in a YAML file read as false",
        "io/record_formats.py",
        '"bool": "true|True|TRUE|false|False|FALSE"',
        '"bool": "true|True|TRUE|false|False|FALSE|yes|no"',
        "tests/test_own_task.py::test_yaml_answers_stay_the_text_that_was_written",
    ),
    Mutant(
        "10.json read before 2.json",
        "io/record_files.py",
        '(int(token), "") if token.isdecimal() else (0, token)',
        "(0, token)",
        "tests/test_builders.py",
    ),
)

LIBRARY = (
    Mutant(
        "finetune trains the model it was given",
        "library/training.py",
        "        parameters = jax.tree.map(jnp.copy, parameters)",
        "        pass",
        f"{LIBRARY_TESTS}::test_finetuning_leaves_the_model_alone_and_export_writes_the_result",
    ),
    Mutant(
        "finetune trains on unfinished traces",
        "library/training.py",
        'if trace.finish_reason == "stop"]',
        "if trace.finish_reason]",
        f"{LIBRARY_TESTS}::test_sampled_tokens_of_finished_traces_are_trained_on",
    ),
    Mutant(
        "finetune tokenizes sampled traces again",
        "library/training.py",
        "trace.token_ids or prompt.completion_ids(trace.completion)",
        "prompt.completion_ids(trace.completion)",
        f"{LIBRARY_TESTS}::test_sampled_tokens_of_finished_traces_are_trained_on",
    ),
    Mutant(
        "traces in the order in which they finished",
        "library/sampling.py",
        "sorted(traces, key=lambda trace: (order[trace.id], trace.sample))",
        "traces if order else traces",
        f"{LIBRARY_TESTS}::test_traces_do_not_depend_on_mesh_or_slots",
    ),
    Mutant(
        "the library's evaluate at the think stage's temperature",
        "library/evaluation.py",
        "sampling_settings(EvaluateConfig, asked, options)",
        'sampling_settings(EvaluateConfig, asked, {"temperature": 0.8, **options})',
        f"{LIBRARY_TESTS}::test_evaluate_samples_at_the_temperature_of_the_evaluate_stage",
    ),
    Mutant(
        "judge ignores the checker it is given",
        "library/judging.py",
        "questions.checker if checker is None else checker",
        "questions.checker",
        f"{LIBRARY_TESTS}::test_traces_are_judged_by_the_questions_they_answer",
    ),
    Mutant(
        "held-out questions known by their spelling",
        "library/judging.py",
        "normalised(texts[name]) in tested",
        "texts[name] in tested",
        f"{LIBRARY_TESTS}::test_traces_of_held_out_questions_are_not_selected",
    ),
    Mutant(
        "held-out questions of a file known by their spelling",
        "library/judge_file.py",
        "normalised(read.questions[name].question) in tested",
        "read.questions[name].question in tested",
        f"{PRUNE_TESTS}::test_traces_of_held_out_questions_are_not_kept",
    ),
    Mutant(
        "the texts of a file's traces held in memory",
        "library/judge_file.py",
        "line, trace = waiting.popleft()",
        "line, trace = waiting[len(judged)]",
        f"{PRUNE_FILE_TESTS}::test_memory_does_not_grow_with_the_texts",
    ),
    Mutant(
        "the kept trace of a file one line too late",
        "library/judge_file.py",
        "json.dumps(index in kept)",
        "json.dumps(index - 1 in kept)",
        f"{PRUNE_FILE_TESTS}::test_a_files_traces_are_selected_as_those_in_memory",
    ),
    Mutant(
        "the time left estimated from the start of the workers",
        "terminal.py",
        "self._first_at: float | None = None",
        "self._first_at: float | None = time.monotonic()",
        f"{PRUNE_FILE_TESTS}::test_time_left_is_estimated_from_the_first_unit_on",
    ),
    Mutant(
        "SIGTERM not handled by a command that cannot be resumed",
        "commands/main.py",
        "if args.is_resumable else _sigterm_interrupts()",
        "if args.main else _sigterm_interrupts()",
        f"{PRUNE_FILE_TESTS}::test_a_command_stopped_by_sigterm_leaves_nothing_behind",
    ),
    Mutant(
        "traces not kept trained on from a file",
        "library/finetune_file.py",
        "return kept is not False",
        "return True",
        f"{PROMPTS}::test_only_kept_finished_traces_of_training_questions_are_trained_on",
    ),
    Mutant(
        "truncated traces trained on from a file",
        "library/finetune_file.py",
        'if parse_finish_reason(line) != "stop":',
        "if not parse_finish_reason(line):",
        f"{PROMPTS}::test_only_kept_finished_traces_of_training_questions_are_trained_on",
    ),
    Mutant(
        "a fine-tuning with other settings resumed",
        "library/finetune_file.py",
        "if started.get(name) != settings[name]]",
        "if name not in started]",
        f"{LIBRARY_TESTS}::test_a_finetuning_with_other_settings_is_not_resumed",
    ),
    Mutant(
        "completions of other settings resumed",
        "library/sample_file.py",
        "if before.get(name) != value:",
        "if name not in before:",
        "tests/test_sample_command.py::test_a_killed_command_resumes_to_the_same_output",
    ),
    Mutant(
        "a completion that was cut off while it was written kept",
        "library/sample_file.py",
        '.split("\\n")[:-1]',
        '.split("\\n")',
        "tests/test_sample_command.py::test_a_killed_command_resumes_to_the_same_output",
    ),
)

WIRES = "tests/test_wires.py"

PLAN = (
    Mutant(
        "every axis of a slice a ring",
        "plan/network.py",
        "is_ring = self.wraps[axis] and gaps ==",
        "is_ring = gaps ==",
        WIRES,
    ),
    Mutant(
        "groups that lie between each other with links of their own",
        "plan/network.py",
        "return (2 if self.is_ring else 1) / self.stride",
        "return 2 if self.is_ring else 1",
        WIRES,
    ),
    Mutant(
        "collectives without the latency of hops",
        "plan/network.py",
        "max(busy, HOP_SECONDS * hops)",
        "busy",
        WIRES,
    ),
    Mutant(
        "waiting for what was overlapped",
        "plan/timeline.py",
        "wait = max(0.0, end - now)",
        "wait = max(0.0, end)",
        WIRES,
    ),
    Mutant(
        "an asynchronous gather counted once for each of its fusions",
        "plan/collectives.py",
        "return None if chain else Event(",
        "return Event(",
        WIRES,
    ),
    Mutant(
        "a fused reduce-scatter counted as an all-reduce",
        "plan/collectives.py",
        'if match[1] == "all-reduce" and FUSED_SCATTER in instruction.text:',
        "if False:",
        WIRES,
    ),
)

MUTANTS: tuple[Mutant, ...] = (
    *THINK,
    *PRUNE_AND_EVALUATION,
    *TRAIN,
    *CHECKS,
    *RUNTIME,
    *LOOP,
    *CHECKPOINTS,
    *PROMPTS_TASKS_IO,
    *LIBRARY,
    *PLAN,
)
