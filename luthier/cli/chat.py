"""`luthier chat`: talk to a run in the terminal, or feed it lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.options import CacheGB, Json, MaxNewTokens, MinP, Seed, Stop, System, Temperature, TopK, TopP, given
from luthier.cli.output import emit, print_error, reading_standard_in, say
from luthier.cli.process import Terminated
from luthier.errors import CacheTooSmall, DataError, UsageError

if TYPE_CHECKING:
    from luthier.prediction.text_model import Chat

_HELP = "/reset forgets what was said, /quit leaves; Ctrl-C breaks off an answer."


def chat(
    run: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="A run, or a model by name, folder or file.")],
    compare: Annotated[
        bool, typer.Option("--compare", help="Answer twice: the base model, then the tuned one.")
    ] = False,
    system: System = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    stop: Stop = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = None,
    cache_gb: CacheGB = None,
    as_json: Json = False,
) -> None:
    """Talk to a model; from a pipe, each line is one thing said."""
    from luthier.api import base_of, load_any_text, load_text

    sampling: dict[str, Any] = given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        stop=stop,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    if compare:
        tuned = load_text(run, say)
        speakers = {
            "base": base_of(run, tuned, say).chat(system, cache_gb=cache_gb, **sampling),
            "tuned": tuned.chat(system, cache_gb=cache_gb, **sampling),
        }
    else:
        speakers = {"model": load_any_text(run, say).chat(system, cache_gb=cache_gb, **sampling)}
    if all(speaker.model.renderer.chat is None for speaker in speakers.values()):
        say("The model has no chat template: it goes on from each line as from plain text, and remembers none.")
    if sys.stdin.isatty():
        say(_HELP)
    turns = []
    for text in _lines(speakers):
        turns.append({"user": text, **{name: _answer(name, speakers, text, as_json) for name in speakers}})
    if as_json:
        emit({"model": run, "turns": turns}, "", as_json=True)


def _lines(speakers: dict[str, Chat]) -> Iterator[str]:
    """What the user says, a line at a time, until the end or /quit; /reset is carried out here."""
    while True:
        try:
            with reading_standard_in():
                line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line == "/reset":
            for speaker in speakers.values():
                speaker.reset()
            say("Forgotten.")
        elif line.startswith("/"):
            unknown = UsageError(f"There is no command {line.split()[0]}.", _HELP)
            print_error(unknown, as_json=False)
        elif line:
            yield line


def _answer(name: str, speakers: dict[str, Chat], text: str, as_json: bool) -> str | None:
    """Print one speaker's answer as it is written; None where it could not be given or was broken off."""
    if len(speakers) > 1 and not as_json:
        print(f"[{name}] ", end="", flush=True)
    answer = ""
    try:
        for piece in speakers[name].stream(text):
            answer += piece
            if not as_json:
                print(piece, end="", flush=True)
    except (DataError, CacheTooSmall) as error:  # the conversation no longer fits the model's context, or the cache
        print_error(DataError(error.found, "Say /reset to begin again."), as_json=False)
        return None
    except KeyboardInterrupt as error:
        if isinstance(error, Terminated) or not sys.stdin.isatty():
            raise
        return None
    finally:
        if not as_json:
            print(flush=True)
    return answer
