"""`python -m bench.within`: QLoRA of a model of a billion parameters and more, and the most memory that the process held.

The model is a Llama of random weights, written in bf16 layer by layer and then read as any other: quantized to NF4 with double
quantization while its files stream in. Trained is a LoRA of rank 16 on all linear layers, on rows of GSM8K, 1,024 tokens and more in
the median step, which is one micro-batch, layers recomputed. Losses mean nothing here; seconds and bytes do.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from bench.contest import RESULTS, carried_out, machine, model_name, say
from bench.figures import gigabytes, table
from bench.processes import ROOT, run_module

SHAPES: dict[str, dict[str, int]] = {
    "1.1B": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4,
    },
    "3B": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
        "num_attention_heads": 24, "num_key_value_heads": 8,
    },
}  # fmt: skip
TARGET_GB = {"1.1B": 2.5, "3B": 5.0}
STEPS = {"1.1B": 20, "3B": 3}
_TOKENS = 1200
"""At most; whole rows of GSM8K fill it to 1,024 and more in the median step."""


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.within", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="SHAPE", help="some of: 1.1B 3B"
    )
    parser.add_argument("--steps", type=int, help="steps of each (default: 20 of 1.1B, 3 of 3B)")
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "gsm8k" / "test.jsonl",
        help="JSONL of question and answer",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for all figures (default: bench/results)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return parser.parse_args(arguments)


def write_model(folder: Path, shape: dict[str, int]) -> int:
    """A model of random weights with the tokenizer of the real one, a file a layer; how many weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from luthier.models.settings import ModelSettings
    from luthier.models.sources import locate

    source = locate(ModelSettings(name=model_name("smollm2-135m")), say)
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        **shape, vocab_size=len(tokenizer), tie_word_embeddings=True, max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {
            name: tensor.shape
            for name, tensor in LlamaForCausalLM(config).state_dict().items()
            if name != "lm_head.weight"
        }
    generator, places, count = torch.Generator().manual_seed(0), {}, 0
    for number, names in enumerate(_by_layer(list(shapes))):
        file = f"model-{number:03}.safetensors"
        tensors = {}
        for name in names:
            size = shapes[name]
            count += size.numel()
            drawn = torch.randn(size, generator=generator, dtype=torch.bfloat16) * 0.02
            tensors[name] = torch.ones(size, dtype=torch.bfloat16) if len(size) == 1 else drawn
            places[name] = file
        save_file(tensors, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 2 * count}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return count


def _by_layer(names: list[str]) -> Iterator[list[str]]:
    """The names of each layer together, and those outside."""
    places = {name: name.split(".")[2] if ".layers." in name else "" for name in names}
    for place in dict.fromkeys(places.values()):
        yield [name for name in names if places[name] == place]


def train(folder: Path, shape: str, steps: int, data: Path) -> dict[str, Any]:
    """What a run measured. Raises: SideFailed."""
    model = folder / "model"
    model.mkdir()
    say(f"{shape}: writing random weights ...")
    count = write_model(model, SHAPES[shape])
    recipe = folder / "recipe.yaml"
    values = {
        "model": {"name": str(model), "device": "cpu", "dtype": "fp32"},
        "data": {"train": str(data), "validation": "none", "max_length": 640},
        "method": {"kind": "lora", "rank": 16},
        "quantization": {"kind": "nf4"},
        "training": {
            "steps": steps, "tokens_per_step": _TOKENS, "tokens_per_micro_batch": _TOKENS, "workers": 1,
            "gradient_checkpointing": True, "checkpoint_every": steps,
        },
        "seed": 0,
    }  # fmt: skip
    recipe.write_text(json.dumps(values), "utf-8")  # JSON is YAML
    say(f"{shape}: {count / 1e9:.2f} B weights; training {steps} steps ...")
    run_module("luthier", ["train", str(recipe), "--out", str(folder / "run")], folder / "train.log", offline=True)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    shutil.rmtree(model)
    plan = json.loads((folder / "run" / "plan.json").read_text("utf-8"))
    return {
        "weights": count,
        "steps": lines,
        "peak_bytes": max(line["peak_memory_bytes"] for line in lines),
        "planned_bytes": plan["peak_bytes"],
        "seconds": [line["seconds"] for line in lines],
        "tokens": [line["real_tokens"] for line in lines],
    }


def bench(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str]:
    """Each shape; the document and the text that tells it. Raises: SideFailed."""
    found = {}
    for shape in options.shapes:
        place = folder / shape
        place.mkdir()
        found[shape] = train(place, shape, options.steps or STEPS[shape], options.data)
    document = {"work": {"name": "within"}, "machine": machine(), "shapes": found}
    return document, report(document)


def report(document: dict[str, Any]) -> str:
    """The document as a table with its setting."""
    rows = [
        (
            shape,
            f"{own['weights'] / 1e9:.2f} B",
            str(len(own["steps"])),
            f"{median(own['tokens']):,.0f}",
            f"{median(own['seconds']):.1f}",
            gigabytes(own["peak_bytes"]),
            gigabytes(own["planned_bytes"]),
            f"{TARGET_GB[shape]:g}",
        )
        for shape, own in document["shapes"].items()
    ]
    head = ("shape", "weights", "steps", "tokens a step", "seconds a step", "peak GB", "planned GB", "target GB")
    return f"{document['machine']['processor']}\n\n{table(head, rows)}"


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; 0, or the exit code of what failed."""
    options = read_arguments(arguments)
    return carried_out(bench, options, "within")


if __name__ == "__main__":
    sys.exit(main())
