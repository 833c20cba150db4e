"""`luthier tokenizer`: a tokenizer of one's own."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.options import Json
from luthier.cli.output import emit, say

if TYPE_CHECKING:
    from luthier.data.tokenizer_training import TrainedTokenizer


class Kind(StrEnum):
    """What --kind takes."""

    BPE = "bpe"
    UNIGRAM = "unigram"


class Purpose(StrEnum):
    """What --for takes."""

    DECODER = "decoder"
    ENCODER = "encoder"
    ENCODER_DECODER = "encoder-decoder"


def tokenizer(
    data: Annotated[list[str], typer.Argument(help="Files of rows or plain text; every text in them counts.")],
    out: Annotated[Path, typer.Option("--out", help="The tokenizer's new folder.")],
    kind: Annotated[Kind, typer.Option("--kind", help="Byte-level BPE, or Unigram with byte fallback.")] = Kind.BPE,
    vocab_size: Annotated[
        int | None,
        typer.Option("--vocab-size", min=1, help="Tokens in all; unset: 8192, or as many as the text supports."),
    ] = None,
    purpose: Annotated[
        Purpose, typer.Option("--for", help="The kind of model, which decides the special tokens.")
    ] = Purpose.DECODER,
    special: Annotated[
        list[str] | None, typer.Option("--special", metavar="TOKEN", help="A further special token; repeatable.")
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(
            "--chat-template",
            help="alpaca, guanaco, chatml, or a file with a Jinja chat template; what ends its answers ends text.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a tokenizer on the texts of data files, and say how well it fits text that was held out."""
    from luthier.data.tokenizer_training import TokenizerSettings, train_tokenizer
    from luthier.store.places import expanded

    settings = TokenizerSettings(
        kind=kind.value,
        vocab_size=vocab_size,
        purpose=purpose.value,
        special=tuple(special or ()),
        chat_template=None if chat_template is None else str(chat_template),
    )
    result = train_tokenizer(
        tuple(data), expanded(out), settings, say, shows_progress=sys.stderr.isatty() and not as_json
    )
    emit(result.as_json(), _text(result), as_json)


def _text(result: TrainedTokenizer) -> str:
    return (
        f"{result.vocab_size:,} tokens, {result.num_special} of them special, in {result.seconds:.1f} s.\n"
        f"On {result.measured_on}: {result.tokens_per_word:.2f} tokens a word, {result.bytes_per_token:.2f} bytes a token, "
        f"{result.unknown_share:.2%} of the tokens unknown or single bytes, {result.exact_share:.1%} of the text came back "
        f"exactly.\n{result.out}"
    )
