"""`python -m bench.toys`: environments whose best policy is known, solved by the algorithms that learn from rewards.

A language of five words and a full stop, and a network of two layers that begins near uniform. With β the price of a nat from the
reference, the best that can be had is J* = β log E_ref exp(R / β) (at β = 0 the highest reward, 1), and what a policy has, E R − β KL, is
found by going through all answers. Each algorithm has one setting for all environments, found once. Exit code 0 if every one comes
to 95 % of J*.

    one of four    one word, of which one is worth 1 (β = 0.2)
    how many       three words, each worth 1 if it is the right one (β = 0.2)
    when to stop   1 if the third token is the full stop
    at the start   five words, of which the first decides
    copy           the first word of the prompt, which has one to three, is wanted again
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from bench.contest import say
from bench.figures import table

WORDS = ("a", "b", "c", "d", "e")
STOP = "."
SEEDS = 5


@dataclass(frozen=True)
class Environment:
    """What is asked, how long answers are, what a nat costs, and what an answer (its words) is worth.

    body: the same worth as Python, from `words` and `prompt`.
    """

    prompts: tuple[str, ...]
    length: int
    beta: float
    body: str

    def worth(self, words: tuple[str, ...], prompt: str) -> float:
        """The reward of an answer."""
        return float(eval(self.body, {"words": list(words), "prompt": prompt}))


ENVIRONMENTS: dict[str, Environment] = {
    "one of four": Environment(("a",), 1, 0.2, "words == ['b']"),
    "how many": Environment(("a",), 3, 0.2, "words.count('b')"),
    "when to stop": Environment(("a",), 5, 0.0, "len(words) == 2"),
    "at the start": Environment(("a",), 5, 0.0, "words[:1] == ['c']"),
    "copy": Environment(
        tuple(first + rest for first in WORDS for rest in ("", " a", " b a")), 1, 0.0, "words == prompt.split()[:1]"
    ),
}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {"num_answers": 1, "reuse": 2, "value_weight": 0.5},
    "rloo": {"num_answers": 8},
    "grpo": {"num_answers": 8},
}
STEPS = {"ppo": 150, "rloo": 200, "grpo": 150}  # rollouts
BATCH, LR = 64, 3e-3
LONGEST_SECONDS = 180


def write_model(folder: Path, seed: int) -> None:
    """A network of two layers over the words, as an ordinary transformers folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate((*WORDS, STOP))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=STOP))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=STOP, pad_token=STOP, unk_token=STOP)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(vocabulary), max_position_embeddings=64, eos_token_id=vocabulary[STOP],
        pad_token_id=vocabulary[STOP], bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def answers_of(length: int) -> list[tuple[int, ...]]:
    """All answers in tokens: up to the full stop, or so many words."""
    stop = len(WORDS)
    found = [(*words, stop) for n in range(length) for words in itertools.product(range(stop), repeat=n)]
    return found + list(itertools.product(range(stop), repeat=length))


@torch.no_grad()
def logprobs(model: Any, prompt: list[int], answers: list[tuple[int, ...]]) -> torch.Tensor:
    """log p of each answer to a prompt, in double precision."""
    longest = max(map(len, answers))
    rows = torch.tensor([[*prompt, *answer, *[0] * (longest - len(answer))] for answer in answers])
    said = model.double()(rows).logits.log_softmax(-1)[:, len(prompt) - 1 : -1]
    chosen = said.gather(-1, rows[:, len(prompt) :, None])[..., 0]
    counts = torch.tensor([[position < len(answer) for position in range(longest)] for answer in answers])
    return (chosen * counts).sum(-1)


def value_of(environment: Environment, policy: Path, reference: Path) -> tuple[float, float, float]:
    """What a policy has, the best that can be had, and the reward alone: over all answers and prompts."""
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (policy, reference)]
    answers = answers_of(environment.length)
    had, best, earned = [], [], []
    for prompt in environment.prompts:
        tokens = [WORDS.index(word) for word in prompt.split()]
        own, other = (logprobs(model, tokens, answers) for model in models)
        texts = [tuple(WORDS[token] for token in answer if token < len(WORDS)) for answer in answers]
        worth = torch.tensor([environment.worth(text, prompt) for text in texts], dtype=torch.float64)
        chance, beta = own.exp(), environment.beta
        earned.append(float((chance * worth).sum()))
        had.append(earned[-1] - beta * float((chance * (own - other)).sum()))
        best.append(float(beta * torch.logsumexp(other + worth / beta, 0)) if beta else 1.0)
    return fmean(had), fmean(best), fmean(earned)


def recipe_of(environment: Environment, kind: str, folder: Path, seed: int, steps: int, told: str) -> dict[str, Any]:
    """The run of an algorithm in an environment; its files are written into the folder. told: as `solve` takes it."""
    rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in environment.prompts)
    (folder / "rows.jsonl").write_text(rows)
    (folder / "worth.py").write_text(
        "def reward(prompts, answers, rows):\n"
        f"    worth = [float({environment.body}) for words, prompt in zip(map(str.split, answers), prompts)]\n"
        f"    return {told}\n"
    )
    settings = ALGORITHMS[kind]
    return {
        "model": str(folder / "model"),
        "data": {"train": str(folder / "rows.jsonl"), "validation": "none", "max_length": 32},
        "method": {"kind": "full"},
        "objective": {
            "kind": kind, "rewards": [{"function": str(folder / "worth.py")}], "max_new_tokens": environment.length,
            "kl": environment.beta, **settings,
        },
        "training": {
            "steps": steps * settings.get("reuse", 1), "rows_per_step": BATCH // settings["num_answers"], "peak_lr": LR,
            "tokens_per_micro_batch": 4096, "workers": 1, "checkpoint_every": 10**6,
        },
        "seed": seed,
    }  # fmt: skip


def solve(name: str, kind: str, seed: int, steps: int | None = None, told: str = "worth") -> dict[str, Any]:
    """Let an algorithm learn in an environment; what it comes to.

    steps: of how many rollouts; unset, of `STEPS`. told: the rewards that it hears of, as Python of `worth`, what the answers are
    worth; with others than these it has nothing to learn from, or something else.
    """
    from luthier.recipe import make_recipe
    from luthier.run import train_recipe

    environment = ENVIRONMENTS[name]
    folder = Path(tempfile.mkdtemp(prefix="luthier-toys-"))
    try:
        write_model(folder / "model", seed)
        values = recipe_of(environment, kind, folder, seed, steps or STEPS[kind], told)
        began = time.perf_counter()
        quiet: Callable[[object], None] = lambda value: None  # noqa: E731
        train_recipe(make_recipe(values), folder / "run", announce=quiet, on_step=quiet)
        seconds = time.perf_counter() - began
        had, best, reward = value_of(environment, folder / "run" / "model", folder / "model")
    finally:
        shutil.rmtree(folder)
    found = {"value": had, "best": best, "reward": reward, "seconds": seconds}
    return {"environment": name, "algorithm": kind, "seed": seed, **found}


def is_solved(found: Mapping[str, Any]) -> bool:
    """Whether a policy has 95 % of the best, in three minutes at most."""
    return bool(found["value"] >= 0.95 * found["best"] and found["seconds"] <= LONGEST_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    """Solve what is asked for; 0 if everything was."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.toys", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=ALGORITHMS, default=list(ALGORITHMS), help="some algorithms")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many (default {SEEDS})")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = []
    for name, kind, seed in itertools.product(ENVIRONMENTS, options.only, range(options.seeds)):
        found.append(solve(name, kind, seed))
        say(
            f"{name}, {kind}, seed {seed}: {found[-1]['value']:.4f} of {found[-1]['best']:.4f} ({found[-1]['seconds']:.0f} s)"
        )
    rows = []
    for name, kind in itertools.product(ENVIRONMENTS, options.only):
        own = [one for one in found if (one["environment"], one["algorithm"]) == (name, kind)]
        worst = min(one["value"] / one["best"] for one in own)
        seconds = math.fsum(one["seconds"] for one in own)
        rows.append((name, kind, f"{100 * worst:.1f} %", f"{sum(map(is_solved, own))} of {len(own)}", f"{seconds:.0f}"))
    names = ("environment", "algorithm", "worst of J*", "solved", "seconds")
    print(json.dumps(found) if options.json else table(names, rows))
    return 0 if all(map(is_solved, found)) else 1


if __name__ == "__main__":
    sys.exit(main())
