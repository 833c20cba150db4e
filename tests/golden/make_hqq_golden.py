"""Make the golden files of HQQ: random layers as its own quantizer packs them, and what it unpacks them to.

    python make_hqq_golden.py HQQ

with the unpacked source distribution of hqq 0.2.8. In an environment that has termcolor and torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "hqq"
OUTPUTS, INPUTS, GROUP = 32, 64, 16


def main() -> None:
    """All widths of codes along both axes."""
    sys.path.insert(0, sys.argv[1])
    from hqq.core.quantize import Quantizer
    from hqq.core.utils import encode_safetensor_type

    FOLDER.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for bits in (1, 2, 3, 4, 8):
        for axis in (0, 1):
            weight_OI = torch.randn(OUTPUTS, INPUTS, generator=generator) * 0.05
            codes, meta = Quantizer.quantize(
                weight_OI, nbits=bits, group_size=GROUP, axis=axis, device="cpu", compute_dtype=torch.float32
            )
            meta["scale"], meta["zero"] = (meta[key].half() for key in ("scale", "zero"))
            meant_OI = Quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})
            kept = {key: encode_safetensor_type(value) for key, value in meta.items()}
            kept |= {"W_q": codes, "weight_OI": meant_OI.float()}
            kept = {key: tensor.contiguous() for key, tensor in kept.items() if tensor is not None}
            save_file(kept, FOLDER / f"hqq-{bits}-axis-{axis}.safetensors")


if __name__ == "__main__":
    main()
