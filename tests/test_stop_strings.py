"""Stop strings, against the decoded text of ever more tokens."""

import itertools
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpt_jax.errors import UserError
from tpt_jax.think.stop_strings import StopStrings, make_stop_strings, token_bytes

TEXT = "Question: Ann has 3 apples.\n\nAnswer: naïve “4” → 7\n#### 7\n\nQuestion: how many?"
KINDS = ("byte_level", "sentencepiece")


def make_tokenizer(kind: str) -> Any:
    """A vocabulary in which tokens overlap the ends of words, with special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    options: dict[str, Any] = {"vocab_size": 340, "special_tokens": ["<pad>"], "show_progress": False}
    if kind == "byte_level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
            [
                pre_tokenizers.Split(Regex(".{1,9}"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<pad>"))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        options["special_tokens"] += [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator([TEXT.replace("→", "") for _ in range(4)], trainers.BpeTrainer(**options))
    # As in published files, bytes are ordinary tokens; the trainer makes them special ones.
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return make_tokenizer(request.param)


def brute_force(tokenizer: Any, strings: list[str], ids: list[int]) -> tuple[int, str] | None:
    """Decodes one token more at a time until a stop string appears, and takes what ends before it."""
    for end in range(len(ids) + 1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        found = [(text.find(string), string) for string in strings if string in text]
        if found:
            start, string = min(found)
            lengths = [len(tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False)) for count in range(end)]
            return max(count for count, length in enumerate(lengths) if length <= start), string
    return None


@pytest.mark.parametrize(
    "strings", [["Question:"], ["\n\n", "\n#"], ["<end>"], ["Quest", "s 3 a"], ["“4”"], ["e", "ie"]]
)
def test_stop_strings_are_found_where_the_decoded_text_has_them(tokenizer: Any, strings: list[str]) -> None:
    stop_strings = make_stop_strings(strings, tokenizer, vocab_size=len(tokenizer) + 3)
    assert stop_strings is not None
    draw = random.Random(0)
    ids = tokenizer.encode(TEXT)
    for _ in range(60):
        shuffled = [*ids[draw.randrange(8) :], draw.randrange(len(tokenizer)), len(tokenizer) - 1]
        start = draw.randrange(len(shuffled))
        shuffled[start : start + 3] = draw.sample(shuffled[start : start + 3], len(shuffled[start : start + 3]))
        found = stop_strings.find(shuffled)
        expected = brute_force(tokenizer, strings, shuffled)
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert found[1] == expected[1]
            assert tokenizer.decode(shuffled[: found[0]]) == tokenizer.decode(shuffled[: expected[0]])
    assert stop_strings.find(tokenizer.encode("Ann")) is None


def test_the_bytes_of_all_tokens_make_the_text(tokenizer: Any) -> None:
    pieces = token_bytes(tokenizer)
    assert b"".join(pieces[token] for token in tokenizer.encode(TEXT)).decode() == TEXT
    assert pieces[len(tokenizer) - 1] == b"<end>"


WORDS = st.text("ab", min_size=1, max_size=4)


@given(strings=st.lists(WORDS, min_size=1, max_size=4), pieces=st.lists(WORDS, max_size=12))
def test_overlapping_strings(strings: list[str], pieces: list[str]) -> None:
    """Over two letters, stop strings contain and overlap each other; the text is searched after every token."""
    vocabulary = ["".join(letters) for size in range(1, 5) for letters in itertools.product("ab", repeat=size)]
    ids = [vocabulary.index(piece) for piece in pieces]
    found = StopStrings.build(strings, [piece.encode() for piece in vocabulary]).find(ids)
    ends = (end for end in range(len(pieces) + 1) if any(string in "".join(pieces[:end]) for string in strings))
    end = next(ends, None)
    if end is None:
        assert found is None
        return
    text = "".join(pieces[:end])
    start, string = min((text.find(string), string) for string in strings if string in text)
    assert found == (max(count for count in range(end) if len("".join(pieces[:count])) <= start), string)


def test_unusable_stop_strings_are_refused(tokenizer: Any) -> None:
    for strings in ([""], ["x" * 300]):
        with pytest.raises(UserError, match="give texts of 1 to 254 bytes"):
            make_stop_strings(strings, tokenizer, vocab_size=400)
    assert make_stop_strings([], tokenizer, vocab_size=400) is None
