"""`luthier export`: a run's model as a folder that other tools read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.options import Json
from luthier.cli.output import emit, say

if TYPE_CHECKING:
    from luthier.studies.export_gate import Checked
    from luthier.studies.exporting import Exported


class Form(StrEnum):
    """What --to takes."""

    PEFT = "peft"
    MERGED = "merged"
    GGUF = "gguf"
    GGUF_LORA = "gguf-lora"
    OLLAMA = "ollama"
    VLLM = "vllm"


class Dtype(StrEnum):
    """What --dtype takes."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


class Quantize(StrEnum):
    """What --quantize takes."""

    NF4 = "nf4"
    FP4 = "fp4"
    INT8 = "int8"


def export(
    run: Annotated[str, typer.Argument(help="The run: its folder, its name under runs/, or latest.")],
    out: Annotated[Path, typer.Option("--out", help="The new folder.")],
    to: Annotated[
        Form,
        typer.Option(
            "--to",
            help="merged: a transformers folder, what was learned in its weights. gguf, ollama: those as one file of llama.cpp's, "
            "with a Modelfile. peft, vllm: the adapter. gguf-lora: the adapter for llama.cpp.",
        ),
    ] = Form.MERGED,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            "--dtype", help="Number format of the weights; unset: that of the run's model. q8_0, q4_0: gguf and ollama."
        ),
    ] = None,
    quantize: Annotated[
        Quantize | None,
        typer.Option("--quantize", help="Quantize the merged weights (bitsandbytes' files), and say what that loses."),
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option("--shard-size", help="Most bytes of one file of merged weights, such as 2GB; unset: 5GB."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's model for other tools, read it back, and keep it only if it says what the run's model says."""
    from luthier import api
    from luthier.quantization.settings import QuantizationSettings
    from luthier.recipe.loading import recipe_of_run
    from luthier.sizes import parse_size
    from luthier.store.places import expanded
    from luthier.store.runs import find_run
    from luthier.studies.exporting import export_run

    folder = find_run(run, api.RUNS)
    result = export_run(
        folder,
        recipe_of_run(folder),
        expanded(out),
        say,
        to=to.value,
        dtype=None if dtype is None else dtype.value,
        quantization=None if quantize is None else QuantizationSettings(kind=quantize.value),
        shard_bytes=None if shard_size is None else parse_size(shard_size, "--shard-size"),
    )
    emit(result.as_json(), _text(result), as_json)


def _text(result: Exported) -> str:
    from luthier.sizes import readable_bytes

    lines = [f"Weights: {readable_bytes(result.num_bytes)}."]
    if result.lost is not None:
        lines.append(
            f"Quantizing moved them by {result.lost.relative_error:.2%}; most in {result.lost.worst} "
            f"({result.lost.worst_error:.2%})."
        )
    if result.losses is not None:
        before, after = result.losses["run"], result.losses["written"]
        lines.append(f"Held-out loss: {before:.4f} in the run, {after:.4f} as written ({after - before:+.4f}).")
    elif result.to == "merged":
        lines.append("The run held out no rows, so the loss was not measured.")
    lines += [_checked(each) for each in result.checked[-1:]]
    return "\n".join([*lines, *result.notes, str(result.out)])


def _checked(checked: Checked) -> str:
    parity = checked.parity
    where = "" if checked.is_elsewhere else "; unverified elsewhere"
    return (
        f"Read back by {checked.reader}{where}: over {parity.num_tokens:,} tokens of {checked.texts}, the largest logit "
        f"difference is {parity.difference:.1e} of the largest logit, KL {parity.kl:.1e} nats, the likeliest token agrees on "
        f"{parity.agreement:.1%}."
    )
