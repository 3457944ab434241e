"""GSM8K (arXiv 2110.14168), as OpenAI publishes it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from tpt_jax.tasks.builders.raw import Examples, RawBuilder, with_keys

# Pinned to a commit, so that the files keep the checksums in checksums.tsv.
_URL = (
    "https://raw.githubusercontent.com/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/"
    "grade_school_math/data"
)


class TptGsm8k(RawBuilder):
    """7,473 training and 1,319 test questions, with worked answers that end in "#### number"."""

    FILES: ClassVar[Mapping[str, str]] = {"train.jsonl": f"{_URL}/train.jsonl", "test.jsonl": f"{_URL}/test.jsonl"}
    SOURCE = "github.com/openai/grade-school-math (grade_school_math/data)"
    FIELDS: ClassVar[Mapping[str, Any]] = {"question": tfds.features.Text(), "answer": tfds.features.Text()}

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        files = self.raw_files(dl_manager)
        return {split: self._generate_examples(files[f"{split}.jsonl"]) for split in ("train", "test")}

    def _generate_examples(self, path) -> Examples:
        return with_keys(self.examples(path))
