"""How a GGUF file's vocabulary cuts texts into tokens, by what the file says: its tokens, their kinds, and its merges or scores.

What lies before merging (how a text is changed and cut) is the run's own tokenizer's: the file has a name for it, which is
written only where it is known to mean the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from luthier.errors import ExportMismatch

_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED)
_SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id", "unknown": "unk_token_id"}


def tokens_by_file(file: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """Gives the tokens that the file's vocabulary makes of a text.

    tokenizer: the run's own. Raises ExportMismatch for a special token that the file has another number for.
    """
    fields = gguf.GGUFReader(file).fields

    def told(key: str) -> Any:
        field = fields.get(f"tokenizer.ggml.{key}")
        return None if field is None else field.contents()

    for name, own in _SPECIAL.items():
        found, expected = told(f"{name}_token_id"), getattr(tokenizer, own)
        if found != expected:
            raise ExportMismatch(
                f"The written file has tokenizer.ggml.{name}_token_id {found!r}, and the run's tokenizer {expected!r}.",
                "Use --to merged.",
            )
    texts, kinds = told("tokens"), told("token_type")
    vocabulary = {text: index for index, text in enumerate(texts) if kinds[index] != TokenType.UNUSED}
    whole: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    whole["model"]["vocab"] = vocabulary
    whole["model"]["merges"] = (
        [merge.split(" ") for merge in told("merges") or ()]
        if told("model") == "gpt2"
        else merges_of(vocabulary, told("scores"))
    )
    added = {index: text for text, index in vocabulary.items() if kinds[index] in _ADDED}
    whole["added_tokens"] = _added(added, kinds, whole["added_tokens"])
    read = Tokenizer.from_str(json.dumps(whole))
    return lambda text: list(read.encode(text, add_special_tokens=False).ids)


def merges_of(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that scores stand for: any two neighbours that make a token, those of the highest score first."""
    found = [
        (-scores[index], text[:cut], text[cut:])
        for text, index in vocabulary.items()
        for cut in range(1, len(text))
        if text[:cut] in vocabulary and text[cut:] in vocabulary
    ]
    return [(left, right) for _, left, right in sorted(found)]


def _added(told: Mapping[int, str], kinds: Sequence[int], own: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The tokens that are found in a text before all else, as the run's tokenizer looks for them where it has the same."""
    known = {each["id"]: each for each in own}
    return [
        {**plain, **known.get(index, {}), "id": index, "content": text, "special": kinds[index] == TokenType.CONTROL}
        for index, text in sorted(told.items())
        for plain in [dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)]
    ]
