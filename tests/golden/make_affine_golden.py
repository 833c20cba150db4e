"""Make the golden files of GPTQ's and AWQ's tools: random layers as these pack them, and the weights that they mean.

    python make_affine_golden.py GPTQMODEL AUTOAWQ

with the unpacked source distributions of gptqmodel 7.7.0 and autoawq 0.2.9: neither installs without a GPU, but what packs and
unpacks is plain torch and numpy, and is taken out of the sources and run here. Of AWQ, the codes are packed by
`WQLinear_GEMM.from_linear` and unpacked by `dequantize_gemm`; of GPTQ, packed by `pack_original`, with the weight that is meant
computed from what it was given.
"""

from __future__ import annotations

import ast
import contextlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "affine"
INPUTS, OUTPUTS, GROUP = 64, 32, 16


def taken(file: Path, name: str, names: dict[str, Any]) -> Any:
    """A function out of a source file, with these names around it."""
    tree = ast.parse(file.read_text("utf-8"))
    function = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    function.decorator_list = []
    exec(compile(ast.Module([function], []), str(file), "exec"), names)
    return names[name]


def layer(bits: int, generator: torch.Generator) -> tuple[nn.Linear, Tensor, Tensor]:
    """A linear layer whose weight lies on the grid of its scales and zero points (G, O), and these."""
    groups = INPUTS // GROUP
    scale_GO = (torch.rand(groups, OUTPUTS, generator=generator) * 0.1 + 0.01).half().float()
    zero_GO = torch.randint(1, 2**bits, (groups, OUTPUTS), generator=generator).float()
    codes_IO = torch.randint(0, 2**bits, (INPUTS, OUTPUTS), generator=generator).float()
    of_input = torch.arange(INPUTS) // GROUP
    linear = nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight.data = ((codes_IO - zero_GO[of_input]) * scale_GO[of_input]).t().contiguous()
    return linear, scale_GO, zero_GO


def make_awq(sources: Path, generator: torch.Generator) -> None:
    """Four bits, "gemm"."""
    names: dict[str, Any] = {"torch": torch, "get_best_device": lambda: "cpu"}
    pack = taken(sources / "awq/modules/linear/gemm.py", "from_linear", names)
    unpacking: dict[str, Any] = {"torch": torch, "AWQ_REVERSE_ORDER": [0, 4, 1, 5, 2, 6, 3, 7]}
    for name in ("unpack_awq", "reverse_awq_order", "dequantize_gemm"):
        unpack = taken(sources / "awq/utils/packing_utils.py", name, unpacking)
    linear, scale_GO, zero_GO = layer(4, generator)
    made = pack(
        lambda *args: SimpleNamespace(w_bit=4, in_features=INPUTS), linear, 4, GROUP, scales=scale_GO, zeros=zero_GO
    )
    weight_IO = unpack(made.qweight, made.qzeros, made.scales.float(), 4, GROUP)
    kept = {
        "qweight": made.qweight,
        "qzeros": made.qzeros,
        "scales": made.scales,
        "weight_OI": weight_IO.t().contiguous(),
    }
    save_file(kept, FOLDER / "awq-4.safetensors")


def make_gptq(sources: Path, bits: int, in_order: bool, generator: torch.Generator) -> None:
    """So many bits, with the inputs in the order of their groups or not; as the second version of the format."""
    names: dict[str, Any] = {"t": torch, "np": np, "math": math, "nn": nn, "transformers": transformers}
    names |= {"_ConvNd": nn.modules.conv._ConvNd}
    names["THREADPOOLCTL"] = SimpleNamespace(threadpool_limits=lambda count: contextlib.nullcontext())
    pack = taken(sources / "gptqmodel/nn_modules/qlinear/__init__.py", "pack_original", names)
    linear, scale_GO, zero_GO = layer(bits, generator)
    g_idx = (torch.arange(INPUTS) // GROUP).to(torch.int32)
    if not in_order:
        order = torch.randperm(INPUTS, generator=generator)
        g_idx, linear.weight.data = g_idx[order], linear.weight.data[:, order].contiguous()
    kept: dict[str, Tensor] = {}
    into = SimpleNamespace(
        bits=bits, maxq=2**bits - 1, pack_dtype_bits=32, pack_factor=32 // bits, planar=False, pack_dtype=torch.int32,
        pack_np_dtype=np.int32, pack_np_math_dtype=np.uint32, g_idx=g_idx, bias=None,
    )  # fmt: skip

    def register(name: str, tensor: Tensor) -> None:
        kept[name] = tensor.contiguous()
        setattr(into, name, tensor)

    into.register_buffer = register
    pack(into, linear, scale_GO.t().contiguous(), zero_GO.t().contiguous(), g_idx)
    kept["weight_OI"] = linear.weight.data
    save_file(kept, FOLDER / f"gptq-{bits}{'' if in_order else '-act-order'}.safetensors")


def main() -> None:
    """All of them."""
    gptqmodel, autoawq = map(Path, sys.argv[1:])
    FOLDER.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    make_awq(autoawq, generator)
    for bits in (2, 4, 8):
        make_gptq(gptqmodel, bits, True, generator)
    make_gptq(gptqmodel, 4, False, generator)


if __name__ == "__main__":
    main()
