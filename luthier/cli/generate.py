"""`luthier generate`: answers to prompts, from a run or a plain model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.options import (
    CacheGB,
    FrequencyPenalty,
    Json,
    JsonSchema,
    LogitBias,
    MaxNewTokens,
    MinP,
    PlainAllocator,
    PresencePenalty,
    Regex,
    RepetitionPenalty,
    Seed,
    Stop,
    System,
    Temperature,
    TopK,
    TopP,
    biases_of,
    given,
    schema_of,
)
from luthier.cli.output import emit, reading_standard_in, say
from luthier.cli.process import keep_freed_memory
from luthier.errors import UsageError

if TYPE_CHECKING:
    from luthier.generation.requests import Completed
    from luthier.generation.settings import Sampling
    from luthier.prediction.contract import Reader
    from luthier.prediction.text_model import Prompt, TextModel
    from luthier.rlhf.rewards import Reward


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
    repetition_penalty: RepetitionPenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    presence_penalty: PresencePenalty = None,
    logit_bias: LogitBias = None,
    regex: Regex = None,
    json_schema: JsonSchema = None,
    answers: Annotated[int, typer.Option("--answers", min=1, help="So many answers to each prompt.")] = 1,
    best_by: Annotated[
        str | None,
        typer.Option(
            "--best-by",
            metavar="RUN|FILE.py",
            help="Of these the best alone: by a reward model's run, or a file with reward(prompts, answers, rows).",
        ),
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            "--logprobs", min=0, help="With --json: tokens with log-probabilities, and so many of the likeliest each."
        ),
    ] = None,
    cache_gb: CacheGB = None,
    plain_allocator: PlainAllocator = False,
    as_json: Json = False,
) -> None:
    """Print the answers to prompts; one prompt's answer appears as it is written. Models that read say what they learned to."""
    if logprobs is not None and not as_json:
        raise UsageError("Log-probabilities are told in JSON only.", "Add --json, or leave out --logprobs.")
    texts = list(prompt or [_standard_in()])
    if not plain_allocator:
        keep_freed_memory(say)
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
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        logit_bias=biases_of(logit_bias),
        regex=regex,
        json_schema=schema_of(json_schema),
    )
    sampling = make_sampling(settings)
    reward = None if best_by is None else _reward(best_by)
    loaded = load_any(model, say)
    if isinstance(loaded, Reader):
        unset = all(each is None for each in (system, best_by, logprobs, cache_gb))
        asks_for_text = not unset or bool(settings) or answers > 1
        if (base and not loaded.base_answers) or asks_for_text:
            raise _draws_nothing(model, loaded)
        _print_told(model, base_of(model, loaded, say) if base else loaded, texts, option or [], as_json)
        return
    if option:
        raise UsageError(f"{model} writes: it does not choose among options.", "Leave out --option.")
    if base:
        loaded = base_of(model, loaded, say)
    prompts: list[Prompt] = [text if system is None else _chat(system, text) for text in texts]
    if reward is not None:
        from luthier.studies.best_answers import best_answers

        best = best_answers(loaded, prompts, sampling, answers, reward, say, top_logprobs=logprobs, cache_gb=cache_gb)
        told = [
            {**_told_answer(loaded, text, one.answer), "reward": one.reward, "rewards": list(one.rewards)}
            for text, one in zip(texts, best, strict=True)
        ]
        _print_answers(model, loaded, told, sampling, as_json)
        return
    if len(prompts) == 1 and answers == 1 and not as_json:
        _print_stream(loaded, prompts[0], sampling, cache_gb)
        return
    completed = loaded.complete(prompts, sampling, num_answers=answers, top_logprobs=logprobs, cache_gb=cache_gb)
    told = [_told_answer(loaded, texts[index // answers], answer) for index, answer in enumerate(completed)]
    _print_answers(model, loaded, told, sampling, as_json)


def _reward(name: str) -> Reward:
    """What chooses among answers; looked for before the model is read."""
    from luthier.api import RUNS
    from luthier.studies.best_answers import reward_named

    return reward_named(name, RUNS)


def _draws_nothing(model: str, reader: Reader) -> UsageError:
    """What to say where a model that reads is given options of one that writes."""
    also = ", --option" if reader.chooses else ", --base" if reader.base_answers else ""
    return UsageError(
        f"{model} {reader.does}: it draws nothing{'' if reader.base_answers else ', and its base cannot do it'}.",
        f"Leave out all options but --prompt{also} and --json.",
    )


def _print_answers(
    model: str, asked: TextModel, answers: list[dict[str, object]], sampling: Sampling, as_json: bool
) -> None:
    """What a model that writes answers."""
    document = {
        "model": model,
        "adapter": asked.adapter,
        "sampling": sampling.model_dump(mode="json"),
        "answers": answers,
    }
    emit(document, "\n".join(str(answer["text"]) for answer in answers), as_json)


def _told_answer(model: TextModel, prompt: str, answer: Completed) -> dict[str, object]:
    """An answer for the JSON document."""
    told: dict[str, object] = {
        "prompt": prompt,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "tokens": len(answer.tokens),
    }
    if answer.logprobs is not None:
        tokenizer = model.language_model.tokenizer
        told["logprobs"] = [
            {
                "token": token,
                "text": tokenizer.decode([token]),
                "logprob": each.logprob,
                "likeliest": [
                    {"token": other, "text": tokenizer.decode([other]), "logprob": logprob}
                    for other, logprob in each.likeliest
                ],
            }
            for token, each in zip(answer.tokens, answer.logprobs, strict=True)
        ]
    return told


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


def _print_stream(model: TextModel, prompt: Prompt, sampling: Sampling, cache_gb: float | None) -> None:
    for piece in model.stream(prompt, cache_gb=cache_gb, **sampling.model_dump()):
        print(piece, end="", flush=True)
    print()
