"""A run's model as files of its own for other tools, each read back and compared with the run before it gets its name.

Merging unpacks the very base that was trained on. The merged model is compared with the run before anything is written, the
written files after; what fails leaves nothing behind.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from luthier.errors import RecipeError, UsageError
from luthier.export.gguf_adapter import write_gguf_adapter
from luthier.export.gguf_model import GGUFDtype, write_gguf
from luthier.export.merged import Lost, write_merged
from luthier.export.ollama import modelfile
from luthier.export.peft_folder import check_served, copy_adapter
from luthier.export.readers import gguf_reader, peft_reader, transformers_reader
from luthier.methods import ADAPTER
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.models.heads import ClassHead
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.writing import SHARD_BYTES, weights_of
from luthier.objectives import Reward
from luthier.prediction.scale import read_scale, write_scale
from luthier.quantization.settings import QuantizationSettings
from luthier.recipe import Recipe
from luthier.recipe.base import head_of
from luthier.recipe.model_card import facts_of_run, write_card
from luthier.store.disk import check_room
from luthier.store.files import remove_file, write_folder, write_text
from luthier.studies.export_gate import Announce, Checked, Gate, stop_at
from luthier.studies.held_out import losses_on
from luthier.tuned import load_attached, load_base_of, load_merged, load_run
from luthier.version import __version__

To = Literal["peft", "merged", "gguf", "gguf-lora", "ollama", "vllm"]
DTYPES_OF: Mapping[To, tuple[str, ...]] = {
    "peft": (),
    "merged": ("fp32", "bf16", "fp16"),
    "gguf": get_args(GGUFDtype),
    "gguf-lora": (),
    "ollama": get_args(GGUFDtype),
    "vllm": (),
}
MODEL_GGUF, ADAPTER_GGUF, TEMPLATE = "model.gguf", "adapter.gguf", "chat_template.jinja"
_CHECKED_WITH = "base.gguf"


@dataclass(frozen=True)
class Exported:
    """What was written.

    num_bytes: of its weights. lost: None where it was not quantized for bitsandbytes. losses: nats a learned token of the run
    and of a merged model on the rows that the run held out; None if there are none. checked: the comparisons that it passed.
    notes: what to know to use it.
    """

    out: Path
    to: To
    num_bytes: int
    lost: Lost | None
    losses: dict[str, float] | None
    checked: tuple[Checked, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The result as one JSON document."""
        lost = None if self.lost is None else asdict(self.lost)
        checked = [each.as_json() for each in self.checked]
        return {**vars(self), "out": str(self.out), "lost": lost, "checked": checked}


@dataclass
class Job:
    """One export under way. folder: the run's. partial: where the files are written before they get their name."""

    folder: Path
    recipe: Recipe
    partial: Path
    gate: Gate
    announce: Announce
    dtype: str | None
    quantization: QuantizationSettings | None
    shard_bytes: int
    lost: Lost | None = None
    losses: dict[str, float] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def adapter_folder(self) -> Path:
        """Where the run keeps its adapter. Raises RecipeError for a run that has none."""
        if self.recipe.method.tunes_base:
            raise RecipeError(
                f"A run of {self.recipe.method.kind} has no adapter: it tuned the model itself.",
                "Use --to merged or --to gguf.",
                field="method.kind",
            )
        return self.folder / self.recipe.method.output_folder

    @property
    def gguf_dtype(self) -> GGUFDtype:
        """The number format of a GGUF file: of what the run's weights have, unless another was asked for."""
        return cast("GGUFDtype", self.gate.formats[0] if self.dtype is None else self.dtype)

    @property
    def called(self) -> str:
        """What files call the model."""
        return f"{Path(self.recipe.model.name).name} {self.folder.name}"


def export_run(
    folder: Path,
    recipe: Recipe,
    out: Path,
    announce: Announce,
    *,
    to: To = "merged",
    dtype: str | None = None,
    quantization: QuantizationSettings | None = None,
    shard_bytes: int | None = None,
) -> Exported:
    """Write a run's model in a form of other tools', whole and checked or not at all.

    dtype: the number format of the weights, one of `DTYPES_OF[to]`; None: that of the run's model.
    quantization: of merged weights, in the form of bitsandbytes.
    shard_bytes: most bytes of one file of merged weights; None: 5 GB.
    Raises UsageError for a folder that is there already and for what does not go with the form; RecipeError for what the form
    cannot hold; ExportMismatch if what was written does not say what the run's model says; DiskFull, ResourceError.
    """
    _check_asked(out, to, dtype, quantization, shard_bytes)
    _tell_version(recipe, announce)
    gate = Gate(recipe, load_run(folder, announce), announce)
    jobs: list[Job] = []

    def fill(partial: Path) -> None:
        job = Job(folder, recipe, partial, gate, announce, dtype, quantization, shard_bytes or SHARD_BYTES)
        _WRITERS[to](job)
        if isinstance(recipe.objective, Reward) and to in ("merged", "peft"):
            write_scale(read_scale(folder / recipe.method.output_folder), partial)
        facts = facts_of_run(folder, recipe)
        if facts is not None and to in ("merged", "peft"):
            write_card(partial, facts)
        jobs.append(job)

    write_folder(out, fill)
    job = jobs[0]
    weights = [file for file in out.iterdir() if file.suffix in (".safetensors", ".gguf")]
    num_bytes = sum(file.stat().st_size for file in weights)
    notes = tuple(note.replace(str(job.partial), str(out)) for note in job.notes)
    return Exported(out, to, num_bytes, job.lost, job.losses, tuple(gate.passed), notes)


def _check_asked(
    out: Path, to: To, dtype: str | None, quantization: QuantizationSettings | None, shard_bytes: int | None
) -> None:
    if out.exists():
        raise UsageError(f"{out} is there already.", "Choose another folder with --out.")
    if dtype is not None and dtype not in DTYPES_OF[to]:
        known = ", ".join(DTYPES_OF[to])
        raise UsageError(
            f"--to {to} has no --dtype {dtype}.",
            f"Choose one of {known}." if known else "Leave --dtype out: the adapter's numbers are written as they are.",
        )
    if quantization is not None and to != "merged":
        raise UsageError(
            f"--quantize writes bitsandbytes' form, which --to {to} has no place for.",
            "Use --dtype q8_0 or q4_0." if "q8_0" in DTYPES_OF[to] else "Leave --quantize out, or use --to merged.",
        )
    if shard_bytes is not None and to != "merged":
        raise UsageError(
            f"--shard-size cuts merged weights into files, and --to {to} writes none.",
            "Leave --shard-size out, or use --to merged.",
        )
    if shard_bytes is not None and shard_bytes < 1:
        raise UsageError("--shard-size is nothing.", "Give a number and a unit, such as 5GB.")


def _tell_version(recipe: Recipe, announce: Announce) -> None:
    made = recipe.provenance
    if made is not None and made.luthier != __version__:
        announce(f"The run was made by luthier {made.luthier}, and this is {__version__}; what is written is compared.")


# ── forms ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _merged(job: Job) -> LanguageModel:
    """The run's model with what it learned in its weights, which says what the run says."""
    model = load_merged(job.folder, job.recipe, job.announce)
    model.tokenizer.chat_template = job.gate.model.tokenizer.chat_template
    if job.gate.template is not None:
        stop_at(model, job.gate.template)
    job.gate.check("the merged model, before it is written", job.gate.own(model, None))
    return model


def _write_merged(job: Job) -> None:
    model = _merged(job)
    job.lost = write_merged(model, job.partial, job.dtype, job.quantization, job.shard_bytes)
    formats = [job.dtype or job.gate.formats[0]] + ([job.quantization.kind] if job.quantization is not None else [])
    del model
    gc.collect()
    is_plain = job.gate.writes_text and job.quantization is None
    if is_plain:
        job.gate.check("the written model", transformers_reader(job.partial, job.gate.model.device), *formats)
    written = load_model(job.recipe.model.at(job.partial), job.announce, head=head_of(job.recipe))
    if not is_plain:
        job.gate.check("the written model", job.gate.own(written, None), *formats)
    run = (job.gate.model, job.gate.adapter)
    job.losses = losses_on(job.recipe, job.gate.texts.held_out, {"run": run, "written": (written, None)})


def _write_gguf(job: Job) -> None:
    _check_text_model(job)
    model = _merged(job)
    file = job.partial / MODEL_GGUF
    write_gguf(model, file, job.gguf_dtype, job.called)
    config, tokenizer = model.hf.config, model.tokenizer
    del model
    gc.collect()
    reader = gguf_reader(file, config, texts=job.gate.told_texts(), tokenizer=tokenizer)
    job.gate.check("the GGUF file", reader, job.gguf_dtype)


def _write_ollama(job: Job) -> None:
    model = job.gate.model
    _check_text_model(job)
    is_plain = job.recipe.data.render == "plain"
    text = modelfile(MODEL_GGUF, model.tokenizer, sorted(model.stop_ids), is_plain=is_plain)
    _write_gguf(job)
    write_text(job.partial / "Modelfile", text)
    job.notes.append(f"Take it into Ollama: ollama create NAME -f {job.partial / 'Modelfile'}")


def _write_gguf_adapter(job: Job) -> None:
    _check_text_model(job)
    _ = job.adapter_folder
    base, attachment = load_attached(job.folder, job.recipe, job.announce)
    if not isinstance(attachment, AdapterAttachment):
        raise RecipeError(
            f"An adapter of {job.recipe.method.kind} has no place in a GGUF adapter: it is made of several.",
            "Use --to gguf, if the method merges.",
            field="method.kind",
        )
    file, checked_with = job.partial / ADAPTER_GGUF, job.partial / _CHECKED_WITH
    write_gguf_adapter(base, attachment, file, job.called)
    del base, attachment
    gc.collect()
    bare = load_base_of(job.recipe, job.announce)
    check_room(checked_with, 4 * sum(tensor.numel() for tensor in weights_of(bare).values()))
    write_gguf(bare, checked_with, "fp32", job.recipe.model.name)
    config, tokenizer = bare.hf.config, bare.tokenizer
    del bare
    gc.collect()
    reader = gguf_reader(checked_with, config, file, job.gate.told_texts(), tokenizer)
    job.gate.check("the GGUF adapter on its base", reader)
    remove_file(checked_with)
    job.notes.append(f"It goes on a GGUF file of {job.recipe.model.name}: llama-cli -m BASE.gguf --lora {file}")
    _tell_rounding(job)


def _write_peft(job: Job) -> None:
    copy_adapter(job.adapter_folder, job.partial, job.recipe.method.kind)
    _check_adapter(job)
    if job.recipe.model.add_tokens or job.recipe.data.chat_template is not None:
        job.gate.model.tokenizer.save_pretrained(job.partial)
        job.notes.append(f"Its tokenizer is another than the base's: load it from {job.partial}.")


def _check_adapter(job: Job) -> None:
    """Compare the written adapter, on the run's base, with the run."""
    recipe = job.recipe
    base = load_base_of(recipe, job.announce)
    reader = peft_reader(base, job.partial) if job.gate.writes_text else None
    if reader is None:
        recipe.method.continued(job.partial).attach(base, ADAPTER, recipe.seed, fast=recipe.training.fast.lora)
        reader = job.gate.own(base, ADAPTER)
    job.gate.check("the adapter on its base", reader)
    _tell_rounding(job)


def _write_vllm(job: Job) -> None:
    config = copy_adapter(job.adapter_folder, job.partial, job.recipe.method.kind)
    serving = check_served(config, job.gate.model.anatomy)
    _check_adapter(job)
    template = ""
    if job.gate.template is not None and job.gate.template.source is not None:
        write_text(job.partial / TEMPLATE, job.gate.template.source)
        template = f" --chat-template {job.partial / TEMPLATE}"  # a server would take the base's
    job.notes.append(
        f"Serve it: vllm serve {job.recipe.model.name} --enable-lora --max-lora-rank {serving.max_rank} "
        f"--lora-modules tuned={job.partial}{template}"
    )
    job.notes.append(
        f"Or: python -m sglang.launch_server --model-path {job.recipe.model.name} --max-lora-rank {serving.max_rank} "
        f"--lora-paths tuned={job.partial}{template}"
    )


def _tell_rounding(job: Job) -> None:
    if job.recipe.quantization is not None:
        job.notes.append(
            f"It was trained on the base in {job.recipe.quantization.kind}; on another rounding of it, it says something else."
        )


def _check_text_model(job: Job) -> None:
    """Raise RecipeError for what GGUF files hold no place for: models that do not write text, and adapters before a text."""
    if not job.gate.writes_text or isinstance(head_of(job.recipe), ClassHead):
        raise RecipeError(
            "GGUF files are written of models that write text with one stack of layers, and this one does something else.",
            "Use --to merged.",
            field="model",
        )


_WRITERS: Mapping[To, Callable[[Job], object]] = {
    "peft": _write_peft,
    "merged": _write_merged,
    "gguf": _write_gguf,
    "gguf-lora": _write_gguf_adapter,
    "ollama": _write_ollama,
    "vllm": _write_vllm,
}
