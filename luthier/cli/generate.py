"""`luthier generate`: answers to prompts, from a run or a plain model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.options import Json, MaxNewTokens, MinP, Seed, Stop, System, Temperature, TopK, TopP, given
from luthier.cli.output import emit, reading_standard_in, say
from luthier.errors import UsageError

if TYPE_CHECKING:
    from luthier.generation.engine import Completed
    from luthier.generation.settings import Sampling
    from luthier.prediction.contract import Reader
    from luthier.prediction.text_model import Prompt, TextModel


def generate(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="A run, or a model by name, folder or file.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="What to answer; repeatable. Unset: standard in.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="What a model that chooses may answer; given once for each option."),
    ] = None,
    system: System = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the model that the run began from.")] = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    stop: Stop = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = None,
    as_json: Json = False,
) -> None:
    """Print the answers to prompts; one prompt's answer appears as it is written. Models that read say what they learned to."""
    texts = list(prompt or [_standard_in()])
    from luthier.api import base_of, load_any
    from luthier.prediction.contract import Reader
    from luthier.prediction.text_model import make_sampling

    settings = given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        stop=stop,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    sampling = make_sampling(settings)
    loaded = load_any(model, say)
    if isinstance(loaded, Reader):
        if (base and not loaded.base_answers) or system is not None or settings:
            raise _draws_nothing(model, loaded)
        _print_told(model, base_of(model, loaded, say) if base else loaded, texts, option or [], as_json)
        return
    if option:
        raise UsageError(f"{model} writes: it does not choose among options.", "Leave out --option.")
    if base:
        loaded = base_of(model, loaded, say)
    prompts: list[Prompt] = [text if system is None else _chat(system, text) for text in texts]
    if len(prompts) == 1 and not as_json:
        _print_stream(loaded, prompts[0], sampling)
        return
    _print_answers(model, loaded, texts, loaded.complete(prompts, sampling), sampling, as_json)


def _draws_nothing(model: str, reader: Reader) -> UsageError:
    """What to say where a model that reads is given options of one that writes."""
    also = ", --option" if reader.chooses else ", --base" if reader.base_answers else ""
    return UsageError(
        f"{model} {reader.does}: it draws nothing{'' if reader.base_answers else ', and its base cannot do it'}.",
        f"Leave out all options but --prompt{also} and --json.",
    )


def _print_answers(
    model: str, asked: TextModel, texts: list[str], answers: list[Completed], sampling: Sampling, as_json: bool
) -> None:
    """What a model that writes answers to the texts."""
    document = {
        "model": model,
        "adapter": asked.adapter,
        "sampling": sampling.model_dump(mode="json"),
        "answers": [
            {"prompt": text, "text": answer.text, "finish_reason": answer.finish_reason, "tokens": len(answer.tokens)}
            for text, answer in zip(texts, answers, strict=True)
        ],
    }
    emit(document, "\n".join(answer.text for answer in answers), as_json)


def _print_told(model: str, reader: Reader, texts: list[str], options: list[str], as_json: bool) -> None:
    """What a model that reads has to say of the texts."""
    told = reader.tell(texts, options)
    document = {
        "model": model,
        "adapter": reader.adapter,
        "answers": [{"prompt": text, **answer} for text, answer in zip(texts, told.answers, strict=True)],
        **told.together,
    }
    emit(document, "\n".join(told.lines), as_json)


def _chat(system: str, text: str) -> Prompt:
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def _standard_in() -> str:
    if sys.stdin.isatty():
        raise UsageError("There is no prompt.", "Give --prompt TEXT, or pipe a text in.")
    with reading_standard_in():
        text = sys.stdin.read().removesuffix("\n")
    if not text:
        raise UsageError("Standard in is empty, so there is no prompt.", "Give --prompt TEXT, or pipe a text in.")
    return text


def _print_stream(model: TextModel, prompt: Prompt, sampling: Sampling) -> None:
    for piece in model.stream(prompt, **sampling.model_dump()):
        print(piece, end="", flush=True)
    print()
