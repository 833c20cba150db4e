"""Makes the work of `bench.grpo` and `bench.ppo_memory` in a process of its own: prompts, the reward, the initial adapter.

All of it is Luthier's own rendering, order of rows and LoRA; the peer gets the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.prepare import ALPHA, CLIP_NORM, PEAK_LR, RANK, SEED, plain_folder, prepared, work_parser
from bench.prompts import GROUP, REWARD, PromptWork, read_questions, write_prompts
from bench.side import say
from luthier.data.mixture import epoch_order
from luthier.data.rendering import build_renderer
from luthier.data.settings import DataSettings
from luthier.errors import DataError, NotFound
from luthier.methods import ADAPTER, LoRA
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.types import Message


def recipe_of(arguments: argparse.Namespace, model: str, folder: Path, longest: int, steps: int) -> dict[str, Any]:
    """Luthier's recipe for the work; what is not named here keeps its default."""
    return {
        "model": {"name": model, "dtype": "fp32", "device": "cpu"},
        "data": {
            "train": str(folder / "rows.jsonl"), "validation": "none",
            "max_length": longest + arguments.max_new_tokens,
        },
        "method": {"kind": "lora", "rank": RANK, "alpha": ALPHA},
        "objective": {
            "kind": "grpo", "rewards": [{"function": str(folder / "reward.py")}], "num_answers": GROUP, "kl": arguments.kl,
            "max_new_tokens": arguments.max_new_tokens, "generation": {"folds_adapter": True},
        },
        "training": {
            "steps": steps, "rows_per_step": arguments.prompts_per_step,
            "tokens_per_micro_batch": max(arguments.budget, longest + arguments.max_new_tokens), "peak_lr": PEAK_LR,
            "schedule": {"kind": "linear", "warmup_steps": 0}, "clip_norm": CLIP_NORM, "checkpoint_every": steps,
        },
        "seed": SEED,
    }  # fmt: skip


def questions(path: Path) -> list[str]:
    """The questions of the data file. Raises: NotFound, DataError."""
    try:
        return read_questions(path)
    except OSError as error:
        raise NotFound("There is no such data file.", "Give JSONL with --data.", file=str(path)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("A row has no question.", "Give JSONL of question with --data.", file=str(path)) from error


def prepare(arguments: argparse.Namespace) -> None:
    """Write the work into the folder. Raises: the errors of reading data and models."""
    folder: Path = arguments.work.absolute()
    settings = ModelSettings(name=arguments.model, dtype="fp32", device="cpu")
    model_folder = plain_folder(settings)
    model = load_model(settings, say)
    renderer = build_renderer(DataSettings(train=str(arguments.data)), model.tokenizer)
    rendered = [(text, renderer.prompt_tokens([Message("user", text)])) for text in questions(arguments.data)]
    chosen = [(text, ids) for text, ids in rendered if len(ids) <= arguments.max_length]
    count = arguments.steps * arguments.prompts_per_step
    if len(chosen) < count:
        raise DataError(
            f"{len(chosen)} prompts have at most {arguments.max_length} tokens, and {count} are needed.",
            "Lower --steps or --prompts-per-step, or give another file with --data.",
        )
    chosen = chosen[:count]
    lines = [json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text, _ in chosen]
    (folder / "rows.jsonl").write_text("".join(lines), "utf-8")
    (folder / "reward.py").write_text(REWARD, "utf-8")
    adapter = folder / "adapter"
    adapter.mkdir()
    LoRA(rank=RANK, alpha=ALPHA).attach(model, ADAPTER, SEED).write(adapter, say)
    longest = max(len(ids) for _, ids in chosen)
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_of(arguments, model_folder, folder, longest, arguments.steps), indent=1))
    order = [chosen[index] for index in epoch_order(count, SEED, 0)]
    work = PromptWork(
        name=arguments.name,
        model=model_folder,
        adapter=str(adapter),
        recipe=str(recipe),
        reward=str(folder / "reward.py"),
        rows_per_step=arguments.prompts_per_step,
        peak_lr=PEAK_LR,
        clip_norm=CLIP_NORM,
        pad_id=model.pad_id,
        kl=arguments.kl,
        max_new_tokens=arguments.max_new_tokens,
        texts=tuple(text for text, _ in order),
        prompt_ids=tuple(ids for _, ids in order),
    )
    write_prompts(folder, work)


def main() -> int:
    """Prepare the work; 0, or the exit code of the error that is printed."""
    parser = work_parser("the prompts that every contestant answers")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--prompts-per-step", type=int, required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--max-new-tokens", type=int, required=True)
    parser.add_argument("--kl", type=float, required=True)
    return prepared(prepare, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
