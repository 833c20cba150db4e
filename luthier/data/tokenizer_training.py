"""Trains a tokenizer on the texts of data files: byte-level BPE, or Unigram with byte fallback.

BPE: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909, over bytes as in GPT-2, so that every text comes back as it was.
Unigram: `unigram`; every text comes back too, but for the character ▁, which stands for a blank.
The texts are read several times, and never all held in memory; their different words are. What is written is a folder that `transformers.AutoTokenizer` reads. The same texts give the same files.

    for                special tokens                                              around a text
    decoder            <s> </s> <pad> (and <unk>)                                  <s> text
    encoder            [PAD] [UNK] [CLS] [SEP] [MASK]                              [CLS] text [SEP] (second text [SEP])
    encoder-decoder    <pad> </s> <unk> <mask>, <extra_id_99> … <extra_id_0> last  text </s> (second text </s>)
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from operator import length_hint
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from luthier.data.corpus import corpus_of, texts_of
from luthier.data.reading import iter_rows
from luthier.data.template import read_template
from luthier.data.unigram import BYTES, characters_of, joining, splitting, trained_pieces, unigram, words_of
from luthier.errors import DataError, RecipeError, UsageError
from luthier.store.files import write_folder
from luthier.types import Settings

Announce = Callable[[str], None]
Purpose = Literal["decoder", "encoder", "encoder-decoder"]

NUM_SENTINELS = 100
"""As many as T5 has: https://arxiv.org/abs/1910.10683."""

_DEFAULT_SIZE = 8192


@dataclass(frozen=True)
class Special:
    """What a kind of model wants of its tokenizer.

    roles: the special tokens by what transformers calls them, in the order of their ids. around, around_pair: what is put around
    a text, and around two.
    """

    roles: dict[str, str]
    around: str
    around_pair: str


SPECIAL: dict[Purpose, Special] = {
    "decoder": Special(
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}, "<s> $A", "<s> $A $B"
    ),
    "encoder": Special(
        {
            "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"
        },
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1",
    ),
    "encoder-decoder": Special(
        {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"},
        "$A </s>", "$A </s> $B </s>",
    ),
}  # fmt: skip


class TokenizerSettings(Settings):
    """What kind of tokenizer is trained, and for what kind of model."""

    kind: Literal["bpe", "unigram"] = Field("bpe", description="Byte-level BPE, or Unigram with byte fallback.")
    vocab_size: int | None = Field(
        None,
        ge=1,
        description="Tokens in all, special ones and sentinels included; unset: 8192, or as many as the text supports.",
    )
    purpose: Purpose = Field(
        "decoder", description="The kind of model that it is for, which decides its special tokens."
    )
    special: tuple[str, ...] = Field((), description="Further special tokens, such as those of a chat template.")
    chat_template: str | None = Field(
        None,
        description="alpaca, guanaco, chatml, a Jinja chat template, or the path of a file that holds one; the token that ends its answers ends text.",
    )


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer that was trained and written, and what it makes of text that it was not trained on.

    measured_on: held out, or the training text where there is too little. unknown_share: of tokens that are unknown or single
    bytes for want of a piece. exact_share: of pieces of text that come back as they were. seconds: of the training.
    """

    out: Path
    kind: str
    purpose: str
    vocab_size: int
    num_special: int
    characters: int
    measured_on: Literal["held-out text", "training text"]
    tokens_per_word: float
    bytes_per_token: float
    unknown_share: float
    exact_share: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The result as one JSON document."""
        return {**asdict(self), "out": str(self.out)}


def train_tokenizer(
    data: str | tuple[str, ...],
    out: Path,
    settings: TokenizerSettings,
    announce: Announce,
    *,
    shows_progress: bool = False,
) -> TrainedTokenizer:
    """Train a tokenizer on every text in the rows of `data`, and write it into the folder `out`.

    shows_progress: whether the trainer draws its bars on standard error.
    Raises: UsageError if the folder holds something, or for a vocabulary that cannot be; DataError for texts that support no
    vocabulary of the size asked for, with how many they do; the errors of reading.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty.", "Choose another folder with --out.")
    marks = (*_first_tokens(settings), *sentinels_of(settings))
    corpus = corpus_of(texts_of(iter_rows(data, announce)), lambda: texts_of(iter_rows(data, lambda text: None)), marks)
    if not any(piece.strip() for piece in corpus.train):
        name = data if isinstance(data, str) else data[0]
        raise DataError("There is no text in these rows.", "Give rows with columns of text.", file=name)
    announce(f"{_counted(corpus.num_texts, 'text')} with {corpus.num_characters:,} characters.")
    for token, times in corpus.times.items():
        if times:
            announce(f"The special token {token} stands in the texts {times:,} times, and is read as that token.")
    began = time.monotonic()
    tokenizer = wrapped(trained(corpus.train, settings, announce, shows_progress=shows_progress), settings)
    seconds = time.monotonic() - began
    write_folder(out, lambda partial: _save(tokenizer, partial), replace=out.exists())
    has_held_out = length_hint(corpus.held_out) > 0
    return TrainedTokenizer(
        out=out,
        kind=settings.kind,
        purpose=settings.purpose,
        vocab_size=len(tokenizer),
        num_special=len(tokenizer.all_special_ids),
        characters=corpus.num_trained,
        measured_on="held-out text" if has_held_out else "training text",
        **measured(tokenizer, corpus.held_out if has_held_out else corpus.train),
        seconds=seconds,
    )


def _save(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    tokenizer.save_pretrained(folder)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# ── training ────────────────────────────────────────────────────────────────────────────────────────────────────────


def trained(
    texts: Iterable[str], settings: TokenizerSettings, announce: Announce, *, shows_progress: bool = False
) -> Tokenizer:
    """The bare tokenizer: its vocabulary and splitting, with the special tokens first and sentinels last.

    texts: what can be gone through several times.
    """
    first = _first_tokens(settings)
    last = sentinels_of(settings)
    room = (settings.vocab_size or _DEFAULT_SIZE) - len(last)
    if settings.kind == "bpe":
        tokenizer = _bpe(texts, room, first, len(last), shows_progress)
    else:
        tokenizer = _unigram(texts, room, first, _roles(settings)["unk_token"], len(last), shows_progress)
    size = tokenizer.get_vocab_size() + len(last)
    if size < room + len(last):
        if settings.vocab_size is not None:
            raise DataError(
                f"The texts support {size:,} tokens, fewer than the {settings.vocab_size:,} asked for.",
                f"Give more text, or set --vocab-size to {size} or less.",
            )
        announce(f"The texts support {size:,} tokens.")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*first, *last)])
    return tokenizer


def sentinels_of(settings: TokenizerSettings) -> tuple[str, ...]:
    """An encoder-decoder's marks for what is left out, in the order of their ids: as in T5, the first gap's has the highest."""
    names = tuple(f"<extra_id_{number}>" for number in reversed(range(NUM_SENTINELS)))
    return names if settings.purpose == "encoder-decoder" else ()


def _first_tokens(settings: TokenizerSettings) -> list[str]:
    """The special tokens that have the first ids. Raises UsageError for one that is named twice."""
    own = [*_roles(settings).values(), *settings.special]
    for token in settings.special:
        if not token.strip():
            raise UsageError("A special token is blank.", "Give --special a text such as '<|user|>'.")
        if [*own, *sentinels_of(settings)].count(token) > 1:
            raise UsageError(f"The special token {token} is there already.", "Leave it out of --special.")
    return own


def _roles(settings: TokenizerSettings) -> dict[str, str]:
    """The special tokens by their roles; a decoder's byte-level BPE knows every text, so it has no unknown one."""
    roles = dict(SPECIAL[settings.purpose].roles)
    if settings.kind == "bpe" and settings.purpose == "decoder":
        del roles["unk_token"]
    return roles


def _check_room(room: int, least: int, more: int, what: str) -> None:
    if room < least:
        raise UsageError(
            f"A vocabulary of {room + more:,} tokens is too small: {what} take {least + more:,} already.",
            f"Set --vocab-size to more than {least + more}.",
        )


def _bpe(texts: Iterable[str], room: int, first: list[str], more: int, shows_progress: bool) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _check_room(room, len(first) + len(alphabet), more, "its special tokens and the 256 bytes")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        min_frequency=2,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in first],
        initial_alphabet=alphabet,
        show_progress=shows_progress,
    )
    tokenizer.train_from_iterator(texts, trainer, length=length_hint(texts))
    return tokenizer


def _unigram(
    texts: Iterable[str], room: int, first: list[str], unknown: str, more: int, shows_progress: bool
) -> Tokenizer:
    words = words_of(texts)
    fixed = len(first) + len(BYTES)
    characters = len(characters_of(words))
    _check_room(
        room, fixed + characters, more, f"its special tokens, 256 bytes and the texts' {characters:,} characters"
    )
    pieces = trained_pieces(texts, room - fixed, shows_progress=shows_progress)
    tokenizer = unigram(first, unknown, pieces, words)
    tokenizer.pre_tokenizer, tokenizer.decoder = splitting(), joining()
    return tokenizer


# ── the folder ──────────────────────────────────────────────────────────────────────────────────────────────────────


def wrapped(tokenizer: Tokenizer, settings: TokenizerSettings) -> PreTrainedTokenizerBase:
    """The tokenizer as transformers has it. Raises RecipeError for a chat template that cannot be used."""
    roles, special = _roles(settings), SPECIAL[settings.purpose]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=special.around,
        pair=special.around_pair,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in roles.values() if token in special.around],
    )
    more = [*settings.special, *sentinels_of(settings)]
    fast: PreTrainedTokenizerBase = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, extra_special_tokens=more, **roles
    )
    if settings.chat_template is not None:
        _take_template(fast, settings.chat_template)
    return fast


def _take_template(tokenizer: PreTrainedTokenizerBase, given: str) -> None:
    """Give a tokenizer its chat template; what ends an answer there ends text."""
    template = read_template(given, tokenizer)
    assert template is not None
    end = template.end_of_turn
    if end is None:
        raise RecipeError(
            "The chat template ends its answers with no special token, so a model would not know where to stop.",
            "Let it write {{ eos_token }} after an answer, or name the token that it writes there with --special.",
            file=given,
        )
    tokenizer.chat_template = template.source
    tokenizer.eos_token = end.text


def measured(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> dict[str, float]:
    """What the tokenizer makes of texts, as `TrainedTokenizer` has it."""
    unknown = {tokenizer.unk_token_id, *(tokenizer.get_vocab().get(byte) for byte in BYTES)}
    of = Counter[str]()
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        of["texts"] += 1
        of["tokens"] += len(ids)
        of["words"] += len(text.split())
        of["bytes"] += len(text.encode())
        of["unknown"] += sum(token in unknown for token in ids)
        of["exact"] += str(tokenizer.decode(ids)) == text
    num_tokens = max(1, of["tokens"])
    return {
        "tokens_per_word": num_tokens / max(1, of["words"]),
        "bytes_per_token": of["bytes"] / num_tokens,
        "unknown_share": of["unknown"] / num_tokens,
        "exact_share": of["exact"] / of["texts"],
    }
