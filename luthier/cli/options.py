"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.errors import NotFound, UsageError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard out, errors included.")]

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a field of the recipe, such as training.epochs=1; repeatable."
    ),
]

PlainAllocator = Annotated[
    bool,
    typer.Option("--plain-allocator", help="Leave the C library's memory allocator as it is."),
]

Temperature = Annotated[
    float | None, typer.Option("--temperature", help="0 takes the likeliest token, 1 draws as the model says.")
]
TopK = Annotated[int | None, typer.Option("--top-k", help="Draw from so many likeliest tokens only.")]
TopP = Annotated[
    float | None, typer.Option("--top-p", help="Draw from the likeliest tokens with this much probability.")
]
MinP = Annotated[
    float | None, typer.Option("--min-p", help="Draw from tokens at least this share as likely as the likeliest.")
]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Text that ends an answer; repeatable.")]
RepetitionPenalty = Annotated[
    float | None, typer.Option("--repetition-penalty", help="Above 1: less of what prompt or answer hold already.")
]
FrequencyPenalty = Annotated[
    float | None, typer.Option("--frequency-penalty", help="Taken from a token's score for each time it was said.")
]
PresencePenalty = Annotated[
    float | None, typer.Option("--presence-penalty", help="Taken from a token's score once it was said.")
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option("--logit-bias", metavar="TOKEN=VALUE", help="Added to the score of the token of an id; repeatable."),
]
Regex = Annotated[str | None, typer.Option("--regex", help="Answers match this regular expression as a whole.")]
JsonSchema = Annotated[
    Path | None, typer.Option("--json-schema", metavar="FILE", help="Answers are JSON of the schema in this file.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed gives the same text.")]
MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", help="Most tokens of one answer.")]
CacheGB = Annotated[
    float | None,
    typer.Option("--cache-gb", min=1e-9, help="Most memory for keys and values of answers, in gigabytes."),
]
System = Annotated[str | None, typer.Option("--system", help="An instruction that stands before the conversation.")]


def biases_of(options: list[str] | None) -> tuple[tuple[int, float], ...] | None:
    """What `--logit-bias` was given, as the setting takes it. Raises: UsageError, for what is no token and number."""
    biases = []
    for option in options or ():
        token, _, value = option.partition("=")
        try:
            biases.append((int(token), float(value)))
        except ValueError as error:
            raise UsageError(
                f"--logit-bias {option} is no token's id and a number.", "Write it as in --logit-bias 42=-5."
            ) from error
    return tuple(biases) or None


def schema_of(path: Path | None) -> str | None:
    """The text of a schema's file. Raises: NotFound, if it cannot be read; UsageError, if it is not UTF-8."""
    if path is None:
        return None
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}.", "Give a file that holds a JSON schema.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text.", "Write the schema as UTF-8.") from error


def given(**values: object) -> dict[str, object]:
    """The options that were given on the command line; the others keep their own defaults."""
    return {name: value for name, value in values.items() if value is not None}
