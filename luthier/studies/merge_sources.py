"""What merging makes one of: finished runs, and what other tools wrote, adapters in `peft`'s two files and model folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import RecipeError, UsageError
from luthier.methods import AdapterMethod, DoRA, LoRA
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.adapter_files import TOKEN_INDICES
from luthier.methods.peft_files import CONFIG
from luthier.models.heads import ClassHead
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.quantization.packed import QuantizedLinear
from luthier.recipe import Recipe
from luthier.recipe.base import head_of
from luthier.recipe.loading import recipe_of_run
from luthier.store.files import read_json
from luthier.store.places import expanded
from luthier.store.runs import find_run, is_run
from luthier.tuned import load_base, load_tuned

Announce = Callable[[str], None]
_MODEL_CONFIG = "config.json"


@dataclass(frozen=True)
class Source:
    """What takes part, and its weight. recipe: of a finished run; None: the folder is an adapter or a model that is no run's."""

    folder: Path
    recipe: Recipe | None
    weight: float = 1.0

    @property
    def is_model(self) -> bool:
        """Whether it is a whole model, and not an adapter."""
        return (self.folder / _MODEL_CONFIG).is_file() if self.recipe is None else self.recipe.method.tunes_base

    @property
    def base(self) -> str:
        """What it calls the model that it began from; empty where an adapter does not say."""
        if self.recipe is not None:
            return self.recipe.model.name
        return str(_adapter_config(self.folder).get("base_model_name_or_path") or "")


def read_source(text: str, runs: Path, weight: float) -> Source:
    """A folder of an adapter or of a model, or a run as `find_run` finds it. Raises NotFound."""
    folder = expanded(text)
    if not is_run(folder) and any((folder / name).is_file() for name in (CONFIG, _MODEL_CONFIG)):
        return Source(folder, None, weight)
    folder = find_run(text, runs)
    return Source(folder, recipe_of_run(folder), weight)


# ── checks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_sources(sources: Sequence[Source], out: Path) -> None:
    """Raise UsageError or RecipeError unless these are several of one base that can become one, at a new place.

    Whether models that are no run's have the same shape and vocabulary shows when they are read.
    """
    if len(sources) < 2:
        raise UsageError("There is nothing to combine.", "Name two runs or more.")
    if out.exists():
        raise UsageError(f"{out} is there already.", "Choose another folder with --out.")
    runs = [(source, source.recipe) for source in sources if source.recipe is not None]
    for source, recipe in runs:
        _check_run(source.folder, recipe)
        _check_same_base(source, recipe, *runs[0])
    adapters = [source for source in sources if not source.is_model]
    for source in adapters:
        if source.recipe is None and not _is_same_name(source.base, adapters[0].base):
            raise RecipeError(
                f"{source.folder} says that it was trained on {source.base or 'no model'}, and {adapters[0].folder} began "
                f"from {adapters[0].base or 'no model'}.",
                f"Combine adapters of one base only. If it is the same, say so in base_model_name_or_path of its {CONFIG}.",
            )


def _check_run(folder: Path, recipe: Recipe) -> None:
    if isinstance(head_of(recipe), ClassHead):
        raise RecipeError(
            f"{folder} trained a head for classes, and heads do not combine.",
            "Combine runs whose models have the head that they began with.",
            field="objective.kind",
        )
    if recipe.model.add_tokens:
        raise _has_rows(folder)


def _has_rows(folder: Path) -> RecipeError:
    return RecipeError(
        f"{folder} trained rows of new tokens, and rows do not combine.",
        "Combine runs without model.add_tokens.",
        field="model.add_tokens",
    )


def _check_same_base(source: Source, recipe: Recipe, first: Source, of_first: Recipe) -> None:
    base, other = recipe.provenance, of_first.provenance
    if base is None or other is None or base.model_sha256 != other.model_sha256:
        raise RecipeError(
            f"{source.folder} and {first.folder} do not begin from the same base model: "
            f"{recipe.model.name} and {of_first.model.name}.",
            "Combine adapters of one base only.",
        )


def _is_same_name(one: str, other: str) -> bool:
    return bool(one) and (one == other or expanded(one).resolve() == expanded(other).resolve())


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def load_shared_base(sources: Sequence[Source], announce: Announce) -> LanguageModel:
    """The base of adapters: as the first run among them has it, else the model that they name."""
    run = next((source for source in sources if source.recipe is not None), None)
    if run is not None:
        return load_base(run.folder, announce)
    return load_model(ModelSettings(name=sources[0].base), announce)


def attach_source(source: Source, model: LanguageModel, name: str) -> AdapterAttachment:
    """An adapter put into its base under a name. Raises RecipeError for what is none of LoRA's kin."""
    if source.recipe is None:
        return _method_of(source).attach(model, name, 0)
    method = source.recipe.method
    if not isinstance(method, AdapterMethod):
        raise RecipeError(
            f"{source.folder} is a run of {method.kind}, which has no adapter.",
            f"Take its change out as one: luthier shrink {source.folder} --energy 0.99",
        )
    attachment = method.continued(source.folder).attach(model, name, source.recipe.seed)
    assert isinstance(attachment, AdapterAttachment)
    return attachment


def _method_of(source: Source) -> LoRA | DoRA:
    """What takes up an adapter that is no run's."""
    if source.is_model:
        raise RecipeError(
            f"{source.folder} is a model, and adapters are merged with adapters.",
            "Merge models with models.",
        )
    config = _adapter_config(source.folder)
    if config.get("peft_type") != "LORA":
        raise RecipeError(
            f"The adapter {source.folder} is of type {config.get('peft_type')!r}.",
            "Combine adapters of LoRA or DoRA, or runs.",
            file=str(source.folder / CONFIG),
            field="peft_type",
        )
    if config.get(TOKEN_INDICES):
        raise _has_rows(source.folder)
    kind = DoRA if config.get("use_dora") else LoRA
    return kind(begin_from=str(source.folder))


def _adapter_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG)
    return config if isinstance(config, dict) else {}


def load_whole(source: Source, announce: Announce) -> LanguageModel:
    """A model that a run tuned, or one from elsewhere. Raises RecipeError for one that comes quantized."""
    if source.recipe is not None:
        return load_tuned(source.folder, source.recipe, announce)
    model = load_model(ModelSettings(name=str(source.folder)), announce)
    if any(isinstance(layer, QuantizedLinear) for layer in model.hf.modules()):
        raise RecipeError(
            f"{source.folder} comes quantized, and there is no mean of codes.", "Merge the unquantized models."
        )
    return model
