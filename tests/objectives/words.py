"""A vocabulary of the tiny models whose last words are marks of pre-training."""

from __future__ import annotations

import numpy as np
from models.tiny import MASK, VOCABULARY
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from luthier.corruption.vocabulary import Vocabulary

NUM_SENTINELS = 14
MARKS = tuple(range(MASK - 3 - NUM_SENTINELS, MASK - NUM_SENTINELS))
"""[NLU], [NLG] and [S2S], which stand for the marks of a middle too."""
SENTINELS = np.arange(MASK - 1, MASK - 1 - NUM_SENTINELS, -1)


def vocabulary(answer_start: int | None = None) -> Vocabulary:
    """One with a mask, marks and sentinels; its second and third words begin and end texts."""
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    names = {MASK: "<mask>"} | {int(index): f"<extra_id_{n}>" for n, index in enumerate(SENTINELS)}
    names |= dict(zip(MARKS, ("[NLU]", "[NLG]", "[S2S]"), strict=True))
    words = {names.get(index, word): index for word, index in words.items()}
    backend = Tokenizer(WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        mask_token="<mask>",
        additional_special_tokens=list(names.values())[1:],
    )
    return Vocabulary(tokenizer, answer_start)
