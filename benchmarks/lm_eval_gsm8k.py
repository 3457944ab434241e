"""GSM8K by lm-evaluation-harness beside our own figures, on the same questions, and where the two differ.

    pip install 'tpt_jax[bench]'
    tpt export --checkpoint runs/NAME/checkpoints/003 --output improved
    python benchmarks/lm_eval_gsm8k.py GSM8K_FOLDER --model improved [--num_questions 50]
    python benchmarks/lm_eval_gsm8k.py GSM8K_FOLDER --published model_solutions_6b.jsonl

GSM8K_FOLDER holds train.jsonl and test.jsonl (github.com/openai/grade-school-math). Nothing is downloaded: the task is
the one that the harness installs, with these files as its data. Each row of the table is a set of texts, one for each
question, which both judge: the harness's own greedy ones (5 examples in the prompt, at most 256 tokens); ours of the
same prompts, at temperature 0; ours as `tpt eval` asks by default, but greedy; and the solutions that OpenAI published
for its two 6B models, whose "A: 18" is written "#### 18", as the data set now does. So between the first two rows only
sampling differs, between second and third the prompt, and within a row the judging. Below are the texts that the two
judge differently, with what each read.
"""

import argparse
import collections
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

import tpt_jax as tpt
from tpt_jax.errors import UserError
from tpt_jax.io.files import read_jsonl

TASK = "gsm8k"
FILTERS = STRICT, FLEXIBLE = "strict-match", "flexible-extract"
MAX_NEW_TOKENS = 256  # the harness's default
MAX_PROMPT_TOKENS = 2_048  # five examples and a question
TAIL = 160  # characters of a text that is shown


@dataclasses.dataclass(frozen=True)
class Judged:
    """A text with the verdicts of both.

    Attributes:
      prompt: the whole prompt that the harness made for the question.
      read: what each of the harness's filters found.
      right: whether that is the reference answer.
    """

    question: tpt.Question
    prompt: str
    text: str
    read: dict[str, str]
    right: dict[str, bool]
    ours: tpt.Verdict

    @property
    def differs(self) -> bool:
        return self.right[STRICT] != self.ours.strict or self.right[FLEXIBLE] != self.ours.correct

    @property
    def reason(self) -> str:
        """Why the verdicts differ, as far as the texts that were read tell."""
        if self.right[STRICT] and not self.ours.correct:
            return "strict-match takes the first ####, we another number"
        if self.right[FLEXIBLE] and not self.ours.correct:
            return "the last number is right by chance; we read another one" if self.ours.extracted else "no answer"
        if self.ours.correct and not self.right[FLEXIBLE]:
            same = self.read[FLEXIBLE].strip("$.,").replace(",", "")
            return "the same number, spelt otherwise" if same == self.ours.extracted else "a number after the answer"
        return "other"


def main() -> int:
    """0: done; 2: a mistake in the input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds GSM8K's train.jsonl and test.jsonl")
    parser.add_argument("--model", type=Path, help="an exported folder")
    parser.add_argument("--published", type=Path, help="OpenAI's model_solutions_6b.jsonl")
    parser.add_argument("--num_questions", type=int, default=50, help="asked of the model")
    parser.add_argument("--batch_size", type=int, default=8, help="of the harness")
    parser.add_argument("--show", type=int, default=3, help="texts shown of each reason")
    args = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    try:
        rows = compare(args)
    except UserError as error:
        print(f"lm_eval_gsm8k.py: {error}", file=sys.stderr)
        return 2
    for name, (judged, _) in rows.items():
        show_differences(name, judged, args.show)
    Console(width=120).print(table(rows))
    return 0


def compare(args: argparse.Namespace) -> dict[str, tuple[list[Judged], float]]:
    """The judged texts of each row, and the seconds of its sampling (0 if the texts were given)."""
    if args.model is None and args.published is None:
        raise UserError("give --model or --published")
    questions = tpt.load_task(TASK, folder=str(args.folder)).test
    rows: dict[str, tuple[list[Judged], float]] = {}
    if args.model is not None:
        asked = questions[: args.num_questions]
        started = time.perf_counter()
        options = {"pretrained": str(args.model), "dtype": "float32"}
        samples = harness("hf", args.folder, len(asked), 5, model_args=options, batch_size=args.batch_size)
        texts = judge(samples, asked)
        rows["harness, its prompt"] = texts, time.perf_counter() - started
        model = tpt.load_model(args.model)
        for name, prompts in (
            ("ours, its prompt", as_written(asked, [each.prompt for each in texts], args.model)),
            ("ours, our prompt", asked),
        ):
            started = time.perf_counter()
            lengths: Any = {"max_prompt_tokens": MAX_PROMPT_TOKENS, "max_new_tokens": MAX_NEW_TOKENS}
            traces = tpt.sample(model, prompts, num_samples=1, temperature=0.0, **lengths)
            seconds = time.perf_counter() - started
            rows[name] = judge(play_back([each.completion for each in traces], args.folder), asked, traces), seconds
        same = sum(left.text == right.text for left, right in zip(texts, rows["ours, its prompt"][0], strict=True))
        print(f"of its prompts, {same} of {len(asked)} texts of ours are the harness's, character by character")
    if args.published is not None:
        for name, solutions in published(args.published, questions).items():
            rows[name] = judge(play_back(solutions, args.folder), questions), 0.0
    return rows


def harness(model: Any, folder: Path, num_questions: int, num_shots: int, **options: Any) -> list[dict[str, Any]]:
    """What the harness logs of each question and filter, in the order of the questions."""
    import lm_eval  # pyright: ignore[reportMissingImports]

    config = yaml.safe_load((Path(str(lm_eval.__file__)).parent / "tasks/gsm8k/gsm8k.yaml").read_text())
    files = {split: str((folder / f"{split}.jsonl").resolve()) for split in ("train", "test")}
    del config["dataset_name"], config["tag"]
    config |= {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "num_fewshot": num_shots}
    results = lm_eval.simple_evaluate(
        model=model, tasks=[config], limit=num_questions, device="cpu", bootstrap_iters=0, **options
    )
    assert results is not None  # None is for other processes than the first
    return results["samples"][TASK]


def play_back(texts: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """As `harness`, of given texts."""
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]

    class Given(LM):
        def generate_until(self, requests: list[Any]) -> list[str]:
            return [str(texts[request.doc_id]) for request in requests]

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            raise NotImplementedError

        def loglikelihood_rolling(self, requests: list[Any]) -> list[Any]:
            raise NotImplementedError

    return harness(Given(), folder, len(texts), 0)


def judge(
    samples: list[dict[str, Any]], questions: tpt.QuestionSet, traces: Sequence[tpt.Trace] | None = None
) -> list[Judged]:
    """Our verdicts beside the harness's.

    Args:
      traces: the texts as we sampled them; others count as complete, since the harness does not log which it cut.
    """
    by_filter = {name: {sample["doc_id"]: sample for sample in samples if sample["filter"] == name} for name in FILTERS}
    texts = [by_filter[STRICT][index]["resps"][0][0] for index in range(len(questions))]
    if traces is None:
        traces = [tpt.Trace(question.id, 0, text) for question, text in zip(questions, texts, strict=True)]
    ours = [each.verdict for each in tpt.judge(traces, questions)]
    judged = []
    for index, (question, text, verdict) in enumerate(zip(questions, texts, ours, strict=True)):
        of_question = {name: by_filter[name][index] for name in FILTERS}
        assert of_question[STRICT]["doc"]["question"] == question.question
        read = {name: sample["filtered_resps"][0] for name, sample in of_question.items()}
        right = {name: sample["exact_match"] == 1 for name, sample in of_question.items()}
        prompt = of_question[STRICT]["arguments"][0][0]
        judged.append(Judged(question, prompt, text, read, right, verdict))
    return judged


def as_written(questions: tpt.QuestionSet, prompts: Sequence[str], model: Path) -> tpt.QuestionSet:
    """Questions whose prompts are exactly these texts, with BOS where the tokenizer puts one, as the harness does."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    bos = "{{ bos_token }}" if tokenizer("?").input_ids[0] == tokenizer.bos_token_id else ""
    turn = "{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    return dataclasses.replace(
        questions.only([dataclasses.replace(q, question=text) for q, text in zip(questions, prompts, strict=True)]),
        instruction="",
        template=f"{bos}{{% for m in messages %}}{turn}{{% endfor %}}",
        stop=("Question:", "</s>", "<|im_end|>"),
    )


def published(path: Path, questions: tpt.QuestionSet) -> dict[str, list[str]]:
    """The solutions by model, in the order of the questions."""
    solutions: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for line in read_jsonl(path):
        solutions[line["model"]][line["question"]] = line["solution"].replace("\nA: ", "\n#### ")
    return {model: [texts[each.question] for each in questions] for model, texts in solutions.items()}


def table(rows: dict[str, tuple[list[Judged], float]]) -> Table:
    result = Table("texts", "questions", STRICT, FLEXIBLE, "our strict", "our correct", "differ", "seconds")
    for name, (judged, seconds) in rows.items():
        known = [each for each in judged if not each.ours.unknown]
        counts = (
            sum(each.right[STRICT] for each in known),
            sum(each.right[FLEXIBLE] for each in known),
            sum(each.ours.strict for each in known),
            sum(each.ours.correct for each in known),
            sum(each.differs for each in known),
        )
        result.add_row(name, str(len(known)), *map(str, counts), f"{seconds:.0f}" if seconds else "")
    return result


def show_differences(name: str, judged: list[Judged], count: int) -> None:
    """Prints differences by reason; texts as ASCII, since a model's text must not drive a terminal."""
    by_reason: dict[str, list[Judged]] = collections.defaultdict(list)
    for each in judged:
        if each.differs and not each.ours.unknown:
            by_reason[each.reason].append(each)
    for reason, found in by_reason.items():
        print(f"{name}: {len(found)} x {reason}")
        for each in found[:count]:
            read = json.dumps({**each.read, "ours": each.ours.extracted or each.ours.reason})
            print(f"    {each.question.id}: reference {each.question.answer}, read {read}")
            print(f"        {each.text[-TAIL:]!a}")


if __name__ == "__main__":
    sys.exit(main())
