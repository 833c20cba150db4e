"""Tokenizers of one's own: exact, repeatable, with the special tokens of their kind of model, and refusals with a mend."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from operator import length_hint
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import CHATML
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from luthier.data.corpus import Corpus, corpus_of, texts_of
from luthier.data.reading import Row
from luthier.data.tickets import generate_tickets
from luthier.data.tokenizer_training import (
    SPECIAL,
    TokenizerSettings,
    TrainedTokenizer,
    train_tokenizer,
    trained,
    wrapped,
)
from luthier.errors import DataError, RecipeError, UsageError
from luthier.types import Origin

LINES = [f"{ticket.text}\n" for ticket in generate_tickets(300, seed=1)]
KINDS = ("bpe", "unigram")
PURPOSES = ("decoder", "encoder", "encoder-decoder")
SIZES = {"bpe": 500, "unigram": 600}


def made(kind: str, purpose: str = "decoder", **others: Any) -> PreTrainedTokenizerBase:
    asked = TokenizerSettings(kind=kind, purpose=purpose, **others)  # type: ignore[arg-type]
    return wrapped(trained(LINES, asked, lambda text: None), asked)


def written(folder: Path, data: Path, **asked: Any) -> tuple[TrainedTokenizer, PreTrainedTokenizerBase]:
    result = train_tokenizer(str(data), folder, TokenizerSettings(**asked), lambda text: None)
    return result, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "orders.txt"
    path.write_text("".join(LINES), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerBase:
    return made("bpe")


@pytest.fixture(scope="module")
def unigram() -> PreTrainedTokenizerBase:
    return made("unigram")


def back(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@settings(deadline=None, max_examples=200)
def test_bpe_gives_every_text_back(bpe: PreTrainedTokenizerBase, text: str):
    assert back(bpe, text) == text


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
@settings(deadline=None, max_examples=200)
def test_unigram_gives_every_text_back_but_for_its_sign_for_a_blank(unigram: PreTrainedTokenizerBase, text: str):
    assert back(unigram, text) == text


@pytest.mark.parametrize("text", [" two  blanks\n\n and tabs\t", "<0x0A> is text", "emoji 🦜 漢字", "\r\n"])
@pytest.mark.parametrize("kind", KINDS)
def test_awkward_text_comes_back(kind: str, text: str, request: pytest.FixtureRequest):
    assert back(request.getfixturevalue(kind), text) == text


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_loads_in_transformers_with_the_vocabulary_and_the_special_tokens_asked_for(
    kind: str, purpose: str, tmp_path: Path, data: Path
):
    size = SIZES[kind] + 100 * (purpose == "encoder-decoder")
    result, loaded = written(tmp_path / "out", data, kind=kind, purpose=purpose, vocab_size=size, special=("<|go|>",))
    assert result.vocab_size == len(loaded) == size
    for role, token in SPECIAL[purpose].roles.items():  # type: ignore[index]
        has_it = (kind, purpose, role) != ("bpe", "decoder", "unk_token")
        assert getattr(loaded, role) == (token if has_it else None)
    go = loaded.convert_tokens_to_ids("<|go|>")
    assert loaded("a<|go|>b", add_special_tokens=False)["input_ids"].count(go) == 1
    assert loaded.decode([go], skip_special_tokens=True) == ""
    assert (result.exact_share, result.measured_on) == (1.0, "held-out text")


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_closed_in_as_their_kind_of_model_wants(kind: str):
    def around(purpose: str, *texts: str) -> list[str]:
        tokenizer = made(kind, purpose)
        inner = {token for text in texts for token in tokenizer.tokenize(text)}
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(*texts)["input_ids"])
        return [token for token in tokens if token not in inner]

    assert around("decoder", "order") == ["<s>"]
    assert around("encoder", "order") == ["[CLS]", "[SEP]"]
    assert around("encoder", "order", "lamp") == ["[CLS]", "[SEP]", "[SEP]"]
    assert around("encoder-decoder", "order") == ["</s>"]
    pair = made(kind, "encoder")("order", "lamp", return_token_type_ids=True)
    assert pair["token_type_ids"] == [whose or 0 for whose in [*pair.sequence_ids()[:-1], 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_sentinels_have_the_last_ids_in_t5s_order(kind: str):
    tokenizer = made(kind, "encoder-decoder")
    assert [tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>") for number in range(100)] == [
        len(tokenizer) - 1 - number for number in range(100)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts_give_the_same_files_in_every_process(kind: str, tmp_path: Path, data: Path, repository: Path):
    written(tmp_path / "here", data, kind=kind, vocab_size=SIZES[kind])
    words = ["tokenizer", data, "--out", tmp_path / "there", "--kind", kind, "--vocab-size", SIZES[kind], "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "luthier", *map(str, words)], cwd=repository, capture_output=True, check=True
    )
    assert json.loads(done.stdout)["vocab_size"] == SIZES[kind]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_unigram_finds_whole_words_and_spells_strange_characters_in_bytes(unigram: PreTrainedTokenizerBase):
    assert unigram.tokenize("where is the order") == ["where", "▁is", "▁the", "▁order"]
    assert unigram.tokenize("漢") == ["<0xE6>", "<0xBC>", "<0xA2>"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_larger_than_the_text_supports_is_refused_with_the_size_that_would_do(kind: str):
    with pytest.raises(DataError, match=r"support ([\d,]+) tokens, fewer than the 90,000") as raised:
        made(kind, vocab_size=90_000)
    supported = int(raised.value.mend.split("--vocab-size to ")[1].split()[0])
    assert len(made(kind, vocab_size=supported)) == supported
    said: list[str] = []
    asked = TokenizerSettings(kind=kind)  # type: ignore[arg-type]
    assert trained(LINES, asked, said.append).get_vocab_size() == supported
    assert said == [f"The texts support {supported:,} tokens."]


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_too_small_for_what_must_be_in_it_is_refused_with_the_least_size(kind: str, purpose: str):
    with pytest.raises(UsageError, match="too small") as raised:
        made(kind, purpose, vocab_size=120)
    least = int(raised.value.mend.rstrip(".").split()[-1])
    assert len(made(kind, purpose, vocab_size=least + 1)) == least + 1


def test_a_folder_that_holds_something_and_rows_without_text_are_refused(tmp_path: Path, data: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        written(tmp_path / "full", data)
    numbers = tmp_path / "numbers.jsonl"
    numbers.write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="no text"):
        written(tmp_path / "new", numbers)


@pytest.mark.parametrize(("token", "said"), [("<s>", "there already"), (" ", "blank")])
def test_special_tokens_that_cannot_be_are_refused(token: str, said: str):
    with pytest.raises(UsageError, match=said):
        made("bpe", special=(token,))


def test_the_token_that_ends_a_templates_answers_ends_text(tmp_path: Path, data: Path):
    special = ("<|im_start|>", "<|im_end|>")
    _, loaded = written(tmp_path / "chat", data, special=special, chat_template=CHATML, vocab_size=300)
    assert loaded.eos_token == "<|im_end|>"
    text = loaded.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n"
    with pytest.raises(RecipeError, match="no special token"):
        made("bpe", chat_template=CHATML)


def corpus(texts: list[str]) -> Corpus:
    return corpus_of(iter(texts), lambda: iter(texts))


def test_every_text_of_a_row_counts_and_held_out_pieces_are_in_no_other():
    values = {"messages": [{"role": "user", "content": "Hi"}], "n": 3, "tags": ["a", "b"], "empty": ""}
    assert list(texts_of([Row(values, Origin("x", 1))])) == ["user", "Hi", "a", "b"]
    found = corpus([*LINES, *LINES])
    train, held_out = list(found.train), list(found.held_out)
    assert {*train, *held_out} == set(LINES)
    assert len(held_out) == len(set(LINES)) // 20 == length_hint(found.held_out)
    assert not set(train) & set(held_out)
    assert train == [line for line in [*LINES, *LINES] if line not in held_out] == list(found.train)
    assert (length_hint(found.train), found.num_trained) == (len(train), sum(map(len, train)))
    assert (found.num_texts, found.num_characters) == (2 * len(LINES), 2 * sum(map(len, LINES)))
    assert "".join(corpus(["x" * 1000 + "\n" + "y"]).train) == "x" * 1000 + "\ny"


def test_a_corpus_larger_than_memory_is_not_held_in_it():
    def texts() -> Iterator[str]:
        return (f"{number} " * 100 for number in range(20_000))

    tracemalloc.start()
    found = corpus_of(texts(), texts)
    num_train = sum(1 for _ in found.train)
    num_held_out = sum(1 for _ in found.held_out)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (num_train, num_held_out) == (19_000, 1_000)
    assert most < found.num_characters / 5


def test_literal_special_tokens_in_the_texts_are_told(tmp_path: Path):
    path = tmp_path / "marks.txt"
    path.write_text("".join(LINES) + "</s> and </s>\n")
    said: list[str] = []
    train_tokenizer(str(path), tmp_path / "out", TokenizerSettings(vocab_size=300), said.append)
    assert [text for text in said if "stands in" in text] == [
        "The special token </s> stands in the texts 2 times, and is read as that token."
    ]
