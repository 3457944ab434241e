"""Data sets on the Hugging Face Hub, through the library `datasets` where that is installed."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from tpt_jax.errors import UserError
from tpt_jax.io.hub import REPOSITORY, SCHEME, HubName, errors_in_one_line, find_commit, quiet
from tpt_jax.io.paths import to_path
from tpt_jax.io.record_formats import Load, RecordFile

SPLIT = re.compile(
    rf"{SCHEME}(?P<repository>{REPOSITORY.pattern})(?:@(?P<revision>[\w.-]+))?(?::(?P<subset>[^/]+))?/(?P<split>[\w.-]+)",
    re.ASCII,
)
FORM = "hf://OWNER/NAME/SPLIT, with @REVISION and :SUBSET after NAME if needed: hf://openai/gsm8k:main/train"


@dataclasses.dataclass(frozen=True)
class HubSplit:
    """A split of a data set: "hf://openai/gsm8k:main/train".

    Attributes:
      subset: what `datasets` calls a configuration; None for the only one.
    """

    name: HubName
    subset: str | None
    split: str

    @classmethod
    def parse(cls, text: str) -> "HubSplit | None":
        """The split that a text names; None for the name of a file.

        Raises:
          UserError: the text starts with hf:// and is not one.
        """
        if not text.startswith(SCHEME):
            return None
        if not (match := SPLIT.fullmatch(text)):
            raise UserError(f"{text!r:.200}: not a split of a data set; write {FORM}")
        return cls(HubName(match["repository"], match["revision"], "dataset"), match["subset"], match["split"])


def open_split(split: HubSplit, commit: str | None) -> RecordFile:
    """The rows of a split, which is downloaded if it is not in the cache of `datasets`. Code in it is never run.

    Args:
      commit: of the data set; None for the newest of its revision.

    Raises:
      UserError: `datasets` is not installed or cannot read the data set, or there is no such data set, subset or split.
      MachineError: the Hub cannot be reached.
    """
    return _Rows(split, commit or find_commit(split.name))


class _Rows(RecordFile):
    def __init__(self, split: HubSplit, commit: str):
        super().__init__(to_path(str(split.name)))
        self._place = f"{split.name}{f':{split.subset}' if split.subset else ''}/{split.split}"
        with errors_in_one_line(split.name), _errors_of_datasets(self._place), quiet():
            self._rows: Any = _load(split, commit)

    def __iter__(self) -> Iterator[tuple[str, Load]]:
        for index, row in enumerate(self._rows):
            yield f"{self._place}, row {index}", lambda row=row: row

    def count(self) -> int:
        return len(self._rows)


def _load(split: HubSplit, commit: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{split.name}: data sets by name need datasets; pip install 'tpt_jax[datasets]'") from error
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity_error()
    try:
        with _without_bars(datasets):
            return datasets.load_dataset(split.name.repository, split.subset, split=split.split, revision=commit)
    finally:
        datasets.logging.set_verbosity(level)


@contextlib.contextmanager
def _without_bars(datasets: Any) -> Iterator[None]:
    """Hides the progress bars of `datasets`, which it shows off a terminal too."""
    had_bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bar()
    try:
        yield
    finally:
        if had_bars:
            datasets.enable_progress_bar()


@contextlib.contextmanager
def _errors_of_datasets(place: str) -> Iterator[None]:
    """Raises what `datasets` raises about a data set, whatever its type, as a UserError."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (UserError, HfHubHTTPError, MemoryError):
        raise
    except (ValueError, RuntimeError, KeyError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{place}: datasets cannot load it ({reason:.300}); see its page for subsets and splits"
        ) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "datasets":
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{place}: datasets cannot load it ({reason:.300}); see its page for what it holds") from error
