"""Stop strings: a trace ends before the first of them, found token by token on the device.

An automaton over bytes (Aho and Corasick, Communications of the ACM 18, 1975) is turned into one over tokens: a table
of states and tokens. A slot carries one state, and a decode step looks up the next one, so a trace ends in the step
that completes a stop string, and the host decodes no text before that.
"""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import UInt8

from tpt_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_BYTES = 254  # of all stop strings together; a state is a byte
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")  # sentencepiece's tokens for single bytes


@dataclasses.dataclass(frozen=True)
class StopStrings:
    """Stop strings in terms of one vocabulary.

    Attributes:
      strings: as bytes.
      token_bytes: the bytes that each token id adds to the text.
      table: the next state for each state and token. State 0 is the start, the last one a completed stop string.
    """

    strings: tuple[bytes, ...]
    token_bytes: tuple[bytes, ...]
    table: UInt8[np.ndarray, "A V"]

    @classmethod
    def build(cls, strings: Sequence[str], token_bytes: Sequence[bytes]) -> Self:
        wanted = tuple(dict.fromkeys(string.encode() for string in strings))
        return cls(wanted, tuple(token_bytes), _token_table(_byte_table(wanted), token_bytes))

    @property
    def num_states(self) -> int:
        return len(self.table)

    def find(self, token_ids: Sequence[int]) -> tuple[int, str] | None:
        """The first stop string, and how many tokens end before it begins; None if there is none."""
        state, end = 0, 0
        for end, token in enumerate(token_ids, start=1):  # noqa: B007
            state = self.table[state, token]
            if state == self.num_states - 1:
                break
        else:
            return None
        pieces = [self.token_bytes[token] for token in token_ids[:end]]
        text = b"".join(pieces)
        start, string = min((text.find(string), string) for string in self.strings if string in text)
        count = sum(length <= start for length in itertools.accumulate(map(len, pieces)))
        return count, string.decode()


def make_stop_strings(
    strings: Sequence[str], tokenizer: "PreTrainedTokenizerBase", vocab_size: int
) -> StopStrings | None:
    """Prepares stop strings for a tokenizer; None if there are none.

    Args:
      vocab_size: of the model, which may have more rows than the tokenizer has tokens.

    Raises:
      UserError: a string is empty, all together are too long, or the tokenizer does not write a string as it is.
    """
    if not strings:
        return None
    if not all(strings) or sum(len(string.encode()) for string in strings) > MAX_BYTES:
        raise UserError(f"stop ({', '.join(map(repr, strings))}): give texts of 1 to {MAX_BYTES} bytes, all together")
    pieces = token_bytes(tokenizer)
    for string in strings:
        ids = tokenizer.encode(f"1{string}", add_special_tokens=False)
        if b"".join(pieces[token] for token in ids).lstrip() != f"1{string}".encode():
            raise UserError(
                f"stop ({string!r}): the tokenizer ({type(tokenizer).__name__}) writes this text in another way; leave "
                "it out, or use a text of plain letters and signs"
            )
    return StopStrings.build(strings, (*pieces[:vocab_size], *[b""] * (vocab_size - len(pieces))))


def token_bytes(tokenizer: "PreTrainedTokenizerBase") -> tuple[bytes, ...]:
    """The bytes that each token id adds to a text, for byte-level BPE and for sentencepiece vocabularies.

    A sentencepiece text begins with a space that decoding drops.
    """
    ids = range(len(tokenizer))
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    is_byte_level = backend is not None and '"ByteLevel"' in json.dumps(json.loads(backend.to_str())["decoder"])
    convert = _byte_level if is_byte_level else _sentencepiece
    added = {index: token.content.encode() for index, token in tokenizer.added_tokens_decoder.items()}
    names: Any = tokenizer.convert_ids_to_tokens(list(ids))
    return tuple(added[index] if index in added else convert(names[index] or "") for index in ids)


def _sentencepiece(name: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()


def _byte_level(name: str) -> bytes:
    bytes_by_letter = _byte_letters()
    if all(letter in bytes_by_letter for letter in name):
        return bytes(bytes_by_letter[letter] for letter in name)
    return name.encode()


@functools.cache
def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes (openai/gpt-2, encoder.py): printable Latin-1, and U+0100 on for the other bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _byte_table(strings: Sequence[bytes]) -> UInt8[np.ndarray, "A 256"]:
    """The automaton over bytes: a state is the longest end of the text that begins a stop string."""
    prefixes = {string[:length] for string in strings for length in range(len(string))}
    prefixes = sorted(prefix for prefix in prefixes if not any(string in prefix for string in strings))  # b"" first
    state_of = {prefix: state for state, prefix in enumerate(prefixes)}
    completed = len(prefixes)
    table = np.full((completed + 1, 256), completed, np.uint8)
    for prefix, state in state_of.items():
        for byte in range(256):
            text = prefix + bytes([byte])
            if not text.endswith(tuple(strings)):
                table[state, byte] = next(
                    state_of[text[start:]] for start in range(len(text) + 1) if text[start:] in state_of
                )
    return table


def _token_table(byte_table: UInt8[np.ndarray, "A 256"], pieces: Sequence[bytes]) -> UInt8[np.ndarray, "A V"]:
    """Runs the automaton over the bytes of every token, from every state."""
    lengths = np.array([len(piece) for piece in pieces])
    longest_first = np.argsort(-lengths, kind="stable")
    padded = np.zeros((len(pieces), lengths.max(initial=0)), np.uint8)
    for index, piece in enumerate(pieces):
        padded[index, : len(piece)] = np.frombuffer(piece, np.uint8)
    table = np.repeat(np.arange(len(byte_table), dtype=np.uint8)[:, None], len(pieces), axis=1)
    for position in range(padded.shape[1]):
        reached = longest_first[: np.searchsorted(-lengths[longest_first], -position, side="left")]
        table[:, reached] = byte_table[table[:, reached], padded[reached, position]]
    return table
