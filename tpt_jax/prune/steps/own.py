"""A user's own step."""

from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from tpt_jax.checks.registry import import_function
from tpt_jax.errors import STRICT, UserError
from tpt_jax.prune.step import Group, RoundStep
from tpt_jax.records import JudgedTrace, Trace, Verdict


@dataclass(frozen=True, config=STRICT)
class Own(RoundStep):
    """Keeps what a function of yours returns.

    It is called once a round with the list of judged traces that earlier steps kept (tpt_jax.JudgedTrace: `trace` and
    `verdict`), by question in the round's random order and sample, and returns those to keep. It must be a pure
    function: otherwise a run that resumes may end with other traces. All finished traces' texts and tokens are
    in memory until it returns, unlike with any other step.

    Attributes:
      function: "module:function".
    """

    function: str

    name: ClassVar[str] = "own"

    def require(self) -> None:
        if not callable(import_function("step", self.function)):
            raise UserError(f"step {self.function!r}: cannot be called; write a function of a list of judged traces")

    def measure(self, trace: Trace, verdict: Verdict) -> Any:
        return JudgedTrace(trace, verdict).to_json() if trace.finish_reason == "stop" else None

    def keep(self, group: Group) -> Iterable[int]:
        judged = [JudgedTrace.from_json(line) for line in group.values]
        indices = {(each.trace.id, each.trace.sample): index for index, each in enumerate(judged)}
        try:
            kept = list(import_function("step", self.function)(judged))
            return [indices[each.trace.id, each.trace.sample] for each in kept]
        except UserError:
            raise
        except Exception as error:  # a user's function can raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            rule = "return those of the given judged traces that are to be kept"
            raise UserError(f"step {self.function!r}: {reason}; {rule}") from error
