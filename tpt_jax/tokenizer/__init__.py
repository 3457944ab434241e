"""A model's tokenizer: its files, its chat template, and the ids that end a text; its files are not trusted."""

from tpt_jax.tokenizer.files import TOKENIZER_FILES, load_tokenizer, read_eos_ids
from tpt_jax.tokenizer.texts import encode, render

__all__ = ["TOKENIZER_FILES", "encode", "load_tokenizer", "read_eos_ids", "render"]
