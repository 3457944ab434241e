"""MBPP, Mostly Basic Python Problems (arXiv 2108.07732), as Google Research publishes it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from tpt_jax.tasks.builders.raw import Examples, RawBuilder, with_keys

_URL = (
    "https://raw.githubusercontent.com/google-research/google-research/2251e8c67a7fe7d6348714967ee101080b28e956/"
    "mbpp/mbpp.jsonl"
)
# First and last task_id of each split, from the authors' README.
SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}


class TptMbpp(RawBuilder):
    """974 small programming problems: a sentence, a reference program, and about three assertions."""

    FILES: ClassVar[Mapping[str, str]] = {"mbpp.jsonl": _URL}
    SOURCE = "github.com/google-research/google-research (mbpp)"
    FIELDS: ClassVar[Mapping[str, Any]] = {
        "task_id": tfds.features.Scalar(np.int64),
        "text": tfds.features.Text(),
        "code": tfds.features.Text(),
        "test_setup_code": tfds.features.Text(),
        "test_list": tfds.features.Sequence(tfds.features.Text()),
        "challenge_test_list": tfds.features.Sequence(tfds.features.Text()),
    }

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        examples = self.examples(self.raw_files(dl_manager)["mbpp.jsonl"])
        return {split: self._generate_examples(examples, split) for split in SPLITS}

    def _generate_examples(self, examples: list[dict[str, Any]], split: str) -> Examples:
        first, last = SPLITS[split]
        return with_keys([example for example in examples if first <= example["task_id"] <= last])
