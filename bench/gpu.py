"""`python -m bench.gpu`: Luthier's loop against peft on one CUDA device, in alternation in one process.

With --nf4 the base is in NF4 with double quantization: QLoRA by Luthier against peft over bitsandbytes' layers.

The models have random weights in known shapes, and the rows random tokens with lengths as in chats, so that nothing has to
be fetched. Both train the same rows in the same steps with LoRA of rank 16 on all linear layers: Luthier packed, peft
padded to the longest row of a step. Reported are real tokens a second after the first steps, and the most memory that
training held above the weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bench.figures import gigabytes, table
from luthier.data.batches import StepBatches
from luthier.methods import LoRA
from luthier.models.attention import FAST, register_attention
from luthier.models.families import family_of
from luthier.models.fast_layers import use_fast_layers
from luthier.models.language_model import FastModel, Identity, LanguageModel
from luthier.models.reading import read_anatomy
from luthier.objectives import SFT
from luthier.ops.workers import Workers
from luthier.quantization.four_bit import quantize_four_bit
from luthier.quantization.packed import QuantizedLinear
from luthier.training.loop import Outside, Plan, train
from luthier.training.settings import TrainingSettings
from luthier.types import Example, Origin, Part

_WARM_UP = 3
_LR = 2e-4
_BUDGET = 16_384
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SHAPES = {
    "135M": LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True, pad_token_id=0,
    ),
    "1.1B": LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
        vocab_size=32000, tie_word_embeddings=False, pad_token_id=0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What both do."""

    shape: str
    dtype: str
    rows_per_step: int
    steps: int
    is_nf4: bool

    @property
    def rows(self) -> list[Example]:
        """Rows of random tokens, their lengths log-normal between 40 and 640; the last three fifths are learned."""
        draw = np.random.default_rng(0)
        return [self._row(draw, document) for document in range(self.rows_per_step * self.steps)]

    def _row(self, draw: np.random.Generator, document: int) -> Example:
        length = int(np.clip(draw.lognormal(5.2, 0.5), 40, 640))
        tokens_T = draw.integers(3, SHAPES[self.shape].vocab_size, length, dtype=np.int64)
        source_N = np.arange(length * 2 // 5, length - 1, dtype=np.int64)
        weight_N, sample_N = np.ones(len(source_N), np.float32), np.zeros(len(source_N), np.int64)
        origin = Origin("random", document + 1)
        return Example((Part(tokens_T),), source_N, tokens_T[source_N + 1], weight_N, sample_N, document, origin)

    def batches(self, budget: int) -> StepBatches:
        """The steps."""
        return StepBatches(
            self.rows, rows_per_step=self.rows_per_step, tokens_per_step=None, budget=budget, workers=1,
            layout="packed", pad_id=0, seed=0,
        )  # fmt: skip


@dataclass(frozen=True)
class Lap:
    """One contestant's run: real tokens a second, bytes above the weights, the loss of the first step."""

    tokens_per_second: float
    bytes_above_weights: int
    first_loss: float


def base_of(work: Work, attention: str) -> LlamaForCausalLM:
    """The frozen model on the device, the same weights each time."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        made = LlamaForCausalLM._from_config(
            SHAPES[work.shape], attn_implementation=attention, dtype=_DTYPES[work.dtype]
        )
    return made.requires_grad_(False).eval()


def measured(run: Callable[[Callable[[int, float], None]], None]) -> Lap:
    """What a run takes; it calls its argument with real tokens and loss after each step."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    laps: list[tuple[float, int, float]] = []

    def step_ended(real_tokens: int, loss: float) -> None:
        torch.cuda.synchronize()
        laps.append((time.perf_counter(), real_tokens, loss))

    run(step_ended)
    seconds = laps[-1][0] - laps[_WARM_UP - 1][0]
    tokens = sum(real for _, real, _ in laps[_WARM_UP:])
    return Lap(tokens / seconds, torch.cuda.max_memory_allocated() - before, laps[0][2])


def luthier_lap(work: Work) -> Lap:
    """Luthier's own loop."""
    register_attention()
    hf, family, fast = base_of(work, FAST), family_of("llama"), FastModel()
    anatomy = read_anatomy(hf, family)
    if work.is_nf4:
        for name in anatomy.linears:
            hf.set_submodule(name, packed(hf.get_submodule(name)))
        anatomy = read_anatomy(hf, family)
        torch.cuda.empty_cache()
    use_fast_layers(hf, anatomy, norm=fast.norm, gated_mlp=fast.gated_mlp, linear=fast.linear)
    model = LanguageModel(hf, None, anatomy, Identity(work.shape, "0" * 64), fast)  # type: ignore[arg-type]
    attachment = LoRA(rank=16, alpha=32).attach(model, "default", seed=0)
    batches = work.batches(_BUDGET)
    settings = TrainingSettings(epochs=1, rows_per_step=work.rows_per_step, tokens_per_micro_batch=_BUDGET)
    plan = Plan(settings, 0, batches.num_steps, _LR, batches.num_steps + 1, batches.num_steps + 1)

    def run(step_ended: Callable[[int, float], None]) -> None:
        outside = Outside(
            None, lambda checkpoint: None, lambda m: step_ended(m["real_tokens"], m["loss"]), print, Path(".")
        )
        with Workers(1) as workers:
            train(model, attachment, SFT(), batches, plan, outside, workers)

    return measured(run)


def packed(linear: nn.Module) -> QuantizedLinear:
    """A linear layer over the same weight in NF4."""
    assert isinstance(linear, nn.Linear)
    return QuantizedLinear(quantize_four_bit(linear.weight, "nf4"), None, linear.weight.dtype)


def in_bitsandbytes(hf: LlamaForCausalLM, dtype: torch.dtype) -> LlamaForCausalLM:
    """A model whose linear layers but the head are bitsandbytes' own, in NF4 with nested scales, as transformers loads it."""
    import bitsandbytes as bnb

    linears = [(name, module) for name, module in hf.model.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linears:
        made = bnb.nn.Linear4bit(
            module.in_features, module.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
        )
        made.weight = bnb.nn.Params4bit(module.weight.data.cpu(), requires_grad=False, quant_type="nf4")
        hf.model.set_submodule(name, made.cuda())
    hf.is_loaded_in_4bit = True  # what peft asks for
    torch.cuda.empty_cache()
    return hf


def peft_lap(work: Work) -> Lap:
    """peft on transformers, its own loss, a fused AdamW."""
    base = base_of(work, "sdpa")
    if work.is_nf4:
        base = in_bitsandbytes(base, _DTYPES[work.dtype])
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_LR, fused=True)
    rows = work.rows

    def run(step_ended: Callable[[int, float], None]) -> None:
        for step in work.batches(10**9):
            chosen = [rows[row] for row in step.rows]
            loss = model(**padded(chosen)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            step_ended(step.real_tokens, float(loss.detach()))

    return measured(run)


def padded(rows: list[Example]) -> dict[str, torch.Tensor]:
    """A step's rows as transformers takes them."""
    shape = len(rows), max(row.num_tokens for row in rows)
    tokens, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for index, row in enumerate(rows):
        tokens[index, : row.num_tokens] = torch.from_numpy(row.parts[0].tokens_T)
        mask[index, : row.num_tokens] = 1
        labels[index, torch.from_numpy(row.source_N + 1)] = torch.from_numpy(row.token_N)
    return {"input_ids": tokens.cuda(), "attention_mask": mask.cuda(), "labels": labels.cuda()}


def main() -> int:
    """Measure in alternation, and print a table or one JSON document."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="135M")
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="bf16")
    parser.add_argument("--rows-per-step", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nf4", action="store_true", help="QLoRA: the base in NF4 with double quantization")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here.", file=sys.stderr)
        return 6
    work = Work(options.shape, options.dtype, options.rows_per_step, options.steps, options.nf4)
    laps: dict[str, list[Lap]] = {"Luthier": [], "peft": []}
    for _ in range(options.rounds):
        for name, lap in (("Luthier", luthier_lap), ("peft", peft_lap)):
            torch.cuda.empty_cache()
            laps[name].append(lap(work))
    if options.json:
        print(
            json.dumps(
                {"work": asdict(work), "laps": {name: [asdict(lap) for lap in own] for name, own in laps.items()}}
            )
        )
        return 0
    print(
        f"{torch.cuda.get_device_name()}; {work.shape}, {work.dtype}{', NF4' if work.is_nf4 else ''}, {work.rows_per_step} rows a step, {options.rounds} rounds, medians."
    )
    print(
        table(("", "tokens/s", "GB above the weights", "first loss"), [row_of(name, own) for name, own in laps.items()])
    )
    return 0


def row_of(name: str, laps: list[Lap]) -> list[str]:
    """A contestant's line of the table."""
    rate = statistics.median(lap.tokens_per_second for lap in laps)
    memory = statistics.median(lap.bytes_above_weights for lap in laps)
    return [name, f"{rate:,.0f}", gigabytes(memory), f"{laps[0].first_loss:.4f}"]


if __name__ == "__main__":
    sys.exit(main())
