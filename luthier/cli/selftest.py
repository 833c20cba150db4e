"""`luthier selftest`: whether what must be the same is the same, on this machine and with this model."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from luthier.cli.export import Quantize
from luthier.cli.options import Json
from luthier.cli.output import aligned, emit, say


class Precision(StrEnum):
    """What --dtype takes."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def selftest(
    model: Annotated[
        str, typer.Option("--model", help="A built-in name, a folder, a hub id or a .gguf file.")
    ] = "smollm2-135m",
    dtype: Annotated[
        Precision,
        typer.Option("--dtype", help="Number format of the weights; in half precision little can be told apart."),
    ] = Precision.FP32,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    quantize: Annotated[
        Quantize | None,
        typer.Option("--quantize", help="Hold the layers in few bits, as for QLoRA, and test that too."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure on your own model what must be the same: packed and unpacked, fast and plain, resumed, merged, and more."""
    from luthier.models.settings import ModelSettings
    from luthier.quantization.settings import QuantizationSettings
    from luthier.studies.selftest.running import selftest as run

    settings = ModelSettings(name=model, dtype=dtype.value, device=device)
    found = run(settings, None if quantize is None else QuantizationSettings(kind=quantize.value), say)
    outcome = f"FAILED: {', '.join(found.failed)}" if found.failed else "All that must be the same is the same"
    text = f"{outcome} ({found.model}, {found.dtype}, {found.device}; {found.seconds:.0f} seconds)."
    emit(found.as_json(), "\n".join([*aligned(found.as_table()), "", text]), as_json)
    if not found.passed:
        raise typer.Exit(1)
