"""`python -m bench.mixed_adapters`: what it costs that each row of a batch has an adapter of its own.

The same rows, forward and backward, under one adapter and under several in turn, in alternation in one process; and that
each row then computes what it computes alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from luthier.data.packing import collate
from luthier.methods import LoRA
from luthier.models.call import Adapters
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.types import Batch, Example, Origin, Part


@dataclass(frozen=True)
class Cost:
    """CPU seconds a step (medians), their ratio, and the largest difference of a row's log-probabilities to its own alone."""

    adapters: int
    rows: int
    tokens: int
    seconds_one: float
    seconds_mixed: float
    ratio: float
    largest_difference: float


def rows_of(count: int, length: int, vocabulary: int) -> list[Example]:
    """Rows of random tokens whose second half is learned."""
    draw = np.random.default_rng(0)
    rows = []
    for document in range(count):
        tokens_T = draw.integers(3, vocabulary, length, dtype=np.int64)
        source_N = np.arange(length // 2, length - 1, dtype=np.int64)
        rows.append(
            Example(
                parts=(Part(tokens_T),),
                source_N=source_N,
                token_N=tokens_T[source_N + 1],
                weight_N=np.ones(len(source_N), dtype=np.float32),
                sample_N=np.zeros(len(source_N), dtype=np.int64),
                document=document,
                origin=Origin("random", document + 1),
            )
        )
    return rows


def attach(model: LanguageModel, count: int) -> list[nn.Parameter]:
    """Adapters a0, a1, … whose updates are not zero; their tensors."""
    tensors: list[nn.Parameter] = []
    for index in range(count):
        attachment = LoRA(rank=16).attach(model, f"a{index}", seed=index)
        for tensor in attachment.trainables.values():
            tensor.data.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index)) * 0.01)
        tensors += attachment.trainables.values()
    return tensors


def seconds_of(model: LanguageModel, batch: Batch, adapters: Adapters, tensors: list[nn.Parameter]) -> float:
    """CPU seconds of one forward and backward pass."""
    began = time.process_time()
    loss = -model.forward(batch, adapters).logprob_N.sum()
    torch.autograd.grad(loss, tensors, allow_unused=True)
    return time.process_time() - began


@torch.no_grad()
def largest_difference(model: LanguageModel, examples: list[Example], batch: Batch, whose: tuple[str, ...]) -> float:
    """Over all rows: the mixed batch's log-probabilities against those of the row alone under its adapter."""
    mixed = model.forward(batch, whose).logprob_N.split([example.num_learned for example in examples])

    def alone(example: Example, adapter: str) -> Tensor:
        return model.forward(collate([example], model.layout, model.pad_id), adapter).logprob_N

    pairs = zip(mixed, examples, whose, strict=True)
    return max(float((both - alone(example, adapter)).abs().max()) for both, example, adapter in pairs)


def measure(name: str, num_adapters: int, rows: int, length: int, rounds: int) -> Cost:
    """The cost on a model, medians over the rounds."""
    torch.set_num_threads(1)
    model = load_model(ModelSettings(name=name), lambda sentence: print(sentence, file=sys.stderr))
    tensors = attach(model, num_adapters)
    examples = rows_of(rows, length, model.vocab_size)
    batch = collate(examples, model.layout, model.pad_id)
    whose = tuple(f"a{row % num_adapters}" for row in range(rows))
    seconds: dict[str, list[float]] = {"one": [], "mixed": []}
    for number in range(rounds + 1):
        for key, adapters in (("one", "a0"), ("mixed", whose)):
            took = seconds_of(model, batch, adapters, tensors)
            if number:  # the first warms up
                seconds[key].append(took)
    one, mixed = (statistics.median(seconds[key]) for key in ("one", "mixed"))
    difference = largest_difference(model, examples, batch, whose)
    return Cost(num_adapters, rows, rows * length, one, mixed, mixed / one, difference)


def main() -> int:
    """Measure, and print a line or one JSON document."""
    parser = argparse.ArgumentParser(prog="python -m bench.mixed_adapters", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cost = measure(options.model, options.adapters, options.rows, options.length, options.rounds)
    if options.json:
        print(json.dumps(asdict(cost), indent=2))
    else:
        print(
            f"{cost.rows} rows, {cost.tokens} tokens: one adapter {cost.seconds_one:.2f} CPU-s a step, "
            f"{cost.adapters} adapters in turn {cost.seconds_mixed:.2f} ({cost.ratio:.2f} times); "
            f"rows alone differ by {cost.largest_difference:.1e} nats at most."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
