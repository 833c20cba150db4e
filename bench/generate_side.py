"""One contestant of `bench.generate` in a process of its own: it answers the prompts, and writes what it said and how long."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.arithmetic import bytes_a_token
from bench.clock import peak_bytes
from bench.side import say
from luthier.cli.process import keep_freed_memory

Answers = list[list[int]]


def main() -> None:
    """Do what the arguments say and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=["prepare", "gaps", "luthier", "luthier-apart", "generate", "continuous"])
    parser.add_argument("work", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    work = json.loads(arguments.work.read_text("utf-8"))
    if arguments.contestant == "prepare":
        arguments.result.write_text(json.dumps(prepared(work)), "utf-8")
        return
    if arguments.contestant == "gaps":
        arguments.result.write_text(json.dumps(gaps(work)), "utf-8")
        return
    if arguments.contestant.startswith("luthier"):
        keep_freed_memory(say)
    import torch

    if work["threads"] is not None:
        torch.set_num_threads(work["threads"])
    makers = {"generate": by_generate, "continuous": by_continuous}
    answer, after = makers.get(arguments.contestant, by_luthier)(work, arguments.batch, arguments.contestant)
    loaded = peak_bytes()
    wall, usage = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    answers = answer()
    used = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": used.ru_utime - usage.ru_utime + used.ru_stime - usage.ru_stime,
        "new_tokens": sum(map(len, answers)),
        "answers": answers,
        "peak_bytes": peak_bytes(),
        "loaded_peak_bytes": loaded,
        "threads": torch.get_num_threads(),
        **after(),
    }
    arguments.result.write_text(json.dumps(result), "utf-8")


def prepared(work: dict[str, Any]) -> dict[str, Any]:
    """The work with its prompts as tokens of the model's chat, the model's folder, and its stop and padding tokens."""
    from bench.prepare import plain_folder
    from luthier.models.loading import load_model
    from luthier.models.settings import ModelSettings

    settings = ModelSettings(name=work["model"], dtype="fp32", device="cpu")
    model = load_model(settings, say)

    def tokens(text: str) -> list[int]:
        message = [{"role": "user", "content": text}]
        ids: list[int] = model.tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]  # type: ignore[index, assignment]
        return ids

    prompts = [tokens(text) for text in work["texts"]]
    if work["prompt_tokens"] is not None:  # the texts one after another, cut to that length
        row = [token for prompt in prompts for token in prompt]
        length = work["prompt_tokens"]
        prompts = [row[index * length : (index + 1) * length] for index in range(len(row) // length)]
    return {
        **work,
        "prompts": prompts[: work["num_prompts"]],
        "folder": plain_folder(settings),
        "stop_ids": sorted(model.stop_ids),
        "pad_id": model.pad_id,
    }


Contest = tuple[Callable[[], Answers], Callable[[], dict[str, Any]]]
"""What is timed, and what is told besides once it is over."""


def by_luthier(work: dict[str, Any], batch: int, contestant: str) -> Contest:
    """Our engine; `luthier-apart` asks for each answer with a prompt of its own, of which nothing is shared."""
    from luthier.generation.engine import Engine, Request
    from luthier.generation.settings import Sampling
    from luthier.models.loading import load_model
    from luthier.models.settings import ModelSettings

    model = load_model(ModelSettings(name=work["model"], dtype="fp32", device="cpu"), say)
    sampling = Sampling(temperature=work["temperature"], max_new_tokens=work["max_new_tokens"])
    requests = []
    for prompt in work["prompts"]:
        if contestant == "luthier":
            requests.append(Request(tuple(prompt), sampling, num_answers=work["samples"]))
            continue
        for sample in range(work["samples"]):
            own = (prompt[0] + sample, *prompt[1:])  # another first token, so that no page is shared
            requests.append(Request(own, sampling.model_copy(update={"seed": sample})))
    engine = Engine(model, max_rows=batch, cache_tokens=work["cache_tokens"])
    widths: Counter[tuple[int, int]] = Counter()
    read = model.read

    def counted(tokens_1T: Any, *rest: Any) -> Any:
        widths[tokens_1T.numel(), len(rest[3])] += 1
        return read(tokens_1T, *rest)

    model.read = counted  # type: ignore[method-assign]

    def answer() -> Answers:
        asked = [engine.submit(request) for request in requests]
        while not engine.is_idle:
            engine.step()
        return [list(answer.tokens) for each in asked for answer in each.completed]

    def after() -> dict[str, Any]:
        stated = work["cache_tokens"] * bytes_a_token(model.hf.config.to_dict())
        return {
            "cache_bytes": engine.cache_bytes,
            "stated_bytes": stated,
            "product_seconds": _product_seconds(model, widths),
        }

    return answer, after


def gaps(work: dict[str, Any]) -> list[float]:
    """How far apart the two best scores are after what was said of each place, as transformers computes them."""
    import torch

    model, found = _plain_model(work), []
    with torch.inference_mode():
        for place in work["places"]:
            tokens_1T = torch.tensor([[*work["prompts"][place["prompt"]], *place["said"]]])
            best_2 = model(tokens_1T, logits_to_keep=1).logits[0, -1].topk(2).values
            found.append(float(best_2[0] - best_2[1]))
    return found


def _product_seconds(model: Any, widths: Counter[tuple[int, int]]) -> dict[str, float]:
    """The time that the products of all steps take alone: of the layers at a step's tokens, of the head at its rows."""
    import torch

    from luthier.models.anatomy import weight_of
    from luthier.ops.products import linear

    @torch.inference_mode()
    def seconds(names: tuple[str, ...], rows: int) -> tuple[float, float]:
        weights = [weight_of(model.hf.get_submodule(name)) for name in names]
        inputs = [torch.randn(rows, weight.shape[1]) for weight in weights]
        best = (float("inf"), float("inf"))
        for _ in range(3):
            wall, cpu = time.perf_counter(), time.process_time()
            for x, weight in zip(inputs, weights, strict=True):
                linear(x, weight)
            best = min(best, (time.perf_counter() - wall, time.process_time() - cpu))
        return best

    def rounded(count: int) -> int:
        return max(1, count if count < 8 else -(-count // 16) * 16)

    totals = {"wall": 0.0, "cpu": 0.0}
    for names, index in ((model.anatomy.linears, 0), ((model.anatomy.head,), 1)):
        counts: Counter[int] = Counter()
        for width, times in widths.items():
            counts[rounded(width[index])] += times
        for rows, times in counts.items():
            wall, cpu = seconds(tuple(names), rows)
            totals["wall"] += times * wall
            totals["cpu"] += times * cpu
    return totals


def _plain_model(work: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(work["folder"], dtype=torch.float32).eval()


def _settings(work: dict[str, Any]) -> Any:
    from transformers import GenerationConfig

    drawn = {"do_sample": True, "temperature": work["temperature"], "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        max_new_tokens=work["max_new_tokens"],
        eos_token_id=work["stop_ids"],
        pad_token_id=work["pad_id"],
        num_return_sequences=work["samples"],
        **(drawn if work["temperature"] else {"do_sample": False}),
    )


def by_generate(work: dict[str, Any], batch: int, _: str) -> Contest:
    """transformers' `generate` over batches of prompts of like length, padded on the left."""
    import torch

    model, settings = _plain_model(work), _settings(work)
    order = sorted(range(len(work["prompts"])), key=lambda row: -len(work["prompts"][row]))
    prompts_at_once = max(1, batch // work["samples"])

    @torch.inference_mode()
    def answer() -> Answers:
        answers: dict[int, Answers] = {}
        for start in range(0, len(order), prompts_at_once):
            rows = order[start : start + prompts_at_once]
            longest = max(len(work["prompts"][row]) for row in rows)
            padding = [longest - len(work["prompts"][row]) for row in rows]
            tokens_BT = torch.tensor(
                [[work["pad_id"]] * pad + work["prompts"][row] for pad, row in zip(padding, rows, strict=True)]
            )
            mask_BT = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
            said = model.generate(tokens_BT, attention_mask=mask_BT, generation_config=settings)[:, longest:].tolist()
            for index, row in enumerate(rows):
                own = said[index * work["samples"] : (index + 1) * work["samples"]]
                answers[row] = [_cut(tokens, work["stop_ids"]) for tokens in own]
        return [answer for row in range(len(order)) for answer in answers[row]]

    return answer, dict


def _cut(tokens: list[int], stop_ids: list[int]) -> list[int]:
    """An answer up to its stop token, which is part of it."""
    ends = [place for place, token in enumerate(tokens) if token in stop_ids]
    return tokens[: ends[0] + 1] if ends else tokens


def by_continuous(work: dict[str, Any], batch: int, _: str) -> Contest:
    """transformers' continuous batching."""
    import torch
    from transformers import ContinuousBatchingConfig

    model, settings = _plain_model(work), _settings(work)
    model.set_attn_implementation("paged|sdpa")
    page = 32
    longest = max(map(len, work["prompts"])) + work["max_new_tokens"]
    config = ContinuousBatchingConfig(block_size=page, num_blocks=batch * -(-longest // page), max_batch_tokens=1024)

    @torch.inference_mode()
    def answer() -> Answers:
        said = model.generate_batch(
            work["prompts"], generation_config=settings, continuous_batching_config=config, warmup=False
        )
        return [_cut(list(output.generated_tokens), work["stop_ids"]) for output in said.values()]

    return answer, dict


if __name__ == "__main__":
    main()
