"""A tokenizer as a GGUF file has it: its tokens, their kinds, its merges, its special tokens and its chat template.

Two kinds of tokenizers have a place there: byte-level BPE (`gpt2`), whose way to cut a text before merging llama.cpp knows by
name, and SentencePiece's BPE with bytes for what it has no token for (`llama`), which merges the piece of the highest score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
from gguf import TokenType
from transformers import PreTrainedTokenizerBase

from luthier.errors import RecipeError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_LINES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPLITS = {
    rf"{_CONTRACTIONS}|\p{{N}}{{1,3}}{_LINES}": "llama-bpe",
    rf"{_CONTRACTIONS}|\p{{N}}{_LINES}": "qwen2",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
"""Regular expressions that cut a text, and llama.cpp's names for them."""


@dataclass(frozen=True)
class Vocabulary:
    """What the file says of a tokenizer.

    model: `gpt2` or `llama`. pre: for `gpt2`, how a text is cut before merging. scores: for `llama`, what is merged first.
    """

    model: str
    pre: str | None
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    scores: Sequence[float] | None
    special: Mapping[str, int]
    adds_bos: bool
    adds_eos: bool
    adds_space: bool
    template: str | None


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, num_rows: int, ends: Sequence[int]) -> Vocabulary:
    """The vocabulary of a model whose embedding has `num_rows` rows, and whose answers end with one of `ends`.

    Raises RecipeError for a tokenizer of another kind, or one that llama.cpp has no name for.
    """
    if not tokenizer.is_fast:
        raise _unwritable("it is not a fast tokenizer")
    whole: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = whole["model"]
    if model["type"] != "BPE":
        raise _unwritable(f"it is of type {model['type']}, not BPE")
    pieces = [list(merge.split(" ")) if isinstance(merge, str) else list(merge) for merge in model["merges"]]
    is_sentencepiece = bool(model.get("byte_fallback"))
    tokens, types = _tokens(whole, tokenizer.unk_token_id, num_rows)
    plain = tokenizer.encode("a", add_special_tokens=False)
    marked = tokenizer.encode("a")
    return Vocabulary(
        model="llama" if is_sentencepiece else "gpt2",
        pre=None if is_sentencepiece else _cut_of(whole.get("pre_tokenizer"), whole.get("normalizer")),
        tokens=tokens,
        types=types,
        merges=[] if is_sentencepiece else [" ".join(pair) for pair in pieces],
        scores=_scores(tokens, pieces) if is_sentencepiece else None,
        special=_special(tokenizer, ends),
        adds_bos=len(marked) > len(plain) and marked[0] == tokenizer.bos_token_id,
        adds_eos=len(marked) > len(plain) and marked[-1] == tokenizer.eos_token_id,
        adds_space=str(tokenizer.convert_ids_to_tokens(plain[0])).startswith(("▁", "Ġ")),
        template=template_of(tokenizer),
    )


def template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template, of several the default one."""
    template: Any = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _unwritable(reason: str) -> RecipeError:
    return RecipeError(
        f"The model's tokenizer has no place in a GGUF file: {reason}.", "Use --to merged.", field="model"
    )


def _tokens(whole: Mapping[str, Any], unknown: int | None, num_rows: int) -> tuple[list[str], list[int]]:
    """The text and the kind of each row's token; rows without one are called [PAD…].

    A byte-level tokenizer knows every text: what it names as unknown, such as GPT-2's <|endoftext|>, is a special token like others,
    and llama.cpp would not find it in a text if it were marked unknown.
    """
    texts = {index: text for text, index in whole["model"]["vocab"].items()}
    added = {each["id"]: each for each in whole["added_tokens"]}
    texts |= {index: each["content"] for index, each in added.items()}
    if max(texts) >= num_rows:
        raise _unwritable(f"it has {max(texts) + 1:,} tokens, and the model's embedding only {num_rows:,} rows")
    is_sentencepiece = bool(whole["model"].get("byte_fallback"))
    kinds = []
    for index in range(num_rows):
        if index not in texts:
            kinds.append(TokenType.UNUSED)
        elif index == unknown and is_sentencepiece:
            kinds.append(TokenType.UNKNOWN)
        elif index in added:
            kinds.append(TokenType.CONTROL if added[index]["special"] else TokenType.USER_DEFINED)
        else:
            is_byte = is_sentencepiece and _BYTE.fullmatch(texts[index])
            kinds.append(TokenType.BYTE if is_byte else TokenType.NORMAL)
    return [texts.get(index, f"[PAD{index}]") for index in range(num_rows)], [int(kind) for kind in kinds]


def _scores(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> list[float]:
    """A score for each token, the higher the earlier its merge; what no merge makes is below all."""
    rank: dict[str, int] = {}
    for index, pair in enumerate(merges):
        rank.setdefault("".join(pair), index)
    return [-float(rank.get(text, len(merges))) for text in tokens]


def _cut_of(pre: Any, normalizer: Any) -> str:
    """llama.cpp's name for how a byte-level tokenizer cuts a text before merging."""
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _unwritable(f"it changes texts first ({normalizer['type']})")
    steps = pre["pretokenizers"] if pre and pre["type"] == "Sequence" else [pre] if pre else []
    kinds = [step["type"] for step in steps]
    if kinds and not any(step.get("add_prefix_space") for step in steps):
        if kinds == ["ByteLevel"] and steps[0]["use_regex"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1]["use_regex"]:
            return "smollm"
        if kinds == ["Punctuation", "ByteLevel", "Digits", "Split"]:
            return "falcon"
        if kinds == ["Split", "ByteLevel"] and not steps[1]["use_regex"] and steps[0]["behavior"] == "Isolated":
            name = _SPLITS.get(steps[0]["pattern"].get("Regex", ""))
            if name is not None:
                return name
    raise _unwritable("llama.cpp has no name for how it cuts texts before merging")


def _special(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> dict[str, int]:
    """Special tokens by what the file calls them; a second token that ends answers is the end of a turn."""
    named = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
        "eot": next((token for token in sorted(ends) if token != tokenizer.eos_token_id), None),
    }
    return {name: index for name, index in named.items() if isinstance(index, int)}


def write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Say it in a file's header."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre or "default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.adds_space)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    add = {
        "bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id, "eot": writer.add_eot_token_id,
    }  # fmt: skip
    for name, index in vocabulary.special.items():
        add[name](index)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)
