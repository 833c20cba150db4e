"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

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
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed gives the same text.")]
MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", help="Most tokens of one answer.")]
System = Annotated[str | None, typer.Option("--system", help="An instruction that stands before the conversation.")]


def given(**values: object) -> dict[str, object]:
    """The options that were given on the command line; the others keep their own defaults."""
    return {name: value for name, value in values.items() if value is not None}
