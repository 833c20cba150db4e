"""The model card beside what a run gives away: `README.md`, with the header that the Hugging Face hub reads.

It says what is known of the run and nothing else: no claim of quality, no purpose, no limits that nobody measured. Names of
folders of this machine are left out; the same run gives the same card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from luthier.data.hub import hub_set, is_hub_name
from luthier.data.settings import files_of
from luthier.evaluation.report import loss_lines
from luthier.evaluation.run_report import read_evaluation, read_report
from luthier.methods.adapter_files import OwnForm, task_type
from luthier.methods.adapterhub_files import WEIGHTS as ADAPTERHUB_WEIGHTS
from luthier.methods.peft_files import WEIGHTS as PEFT_WEIGHTS
from luthier.models.language_model import LanguageModel
from luthier.models.licenses import Published, published
from luthier.recipe.loading import values_of
from luthier.recipe.settings import Provenance, Recipe
from luthier.recipe.yaml_text import to_yaml
from luthier.store.files import write_text
from luthier.store.runs import read_metrics
from luthier.types import Settings

CARD = "README.md"

Library = Literal["peft", "adapters", "transformers", "luthier", "gguf"]

_AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "FEATURE_EXTRACTION": "AutoModel",
}


class Numbers(Settings):
    """What is known of a model once a run has ended, beside its recipe and its losses.

    num_trained: how many numbers. num_rows: that it learned from, and that it held out. num_classes: of its head; 0 for one
    over words. auto_class: what transformers loads such a model with.
    """

    num_trained: int
    num_rows: tuple[int, int]
    num_classes: int
    auto_class: str


@dataclass(frozen=True)
class RunFacts:
    """What a run was made from and what it came to.

    evaluation: what its last evaluation found, as `luthier evaluate --json` gives it; None where there was none.
    """

    recipe: Recipe
    made_from: Provenance
    metrics: Sequence[Mapping[str, Any]]
    numbers: Numbers
    evaluation: Mapping[str, Any] | None = None


def card_numbers(model: LanguageModel, num_trained: int, num_rows: tuple[int, int]) -> Numbers:
    """Of a run's model, and of how many numbers and rows it was trained."""
    anatomy = model.anatomy
    fills_masks = anatomy.family.kind == "encoder" and anatomy.purpose == "words"
    auto_class = "AutoModelForMaskedLM" if fills_masks else _AUTO_CLASSES[task_type(anatomy)]
    return Numbers(num_trained=num_trained, num_rows=num_rows, num_classes=len(model.classes), auto_class=auto_class)


def facts_of_run(folder: Path, recipe: Recipe) -> RunFacts | None:
    """Of a finished run, from its folder; None where an older version carried it out, which did not note them.

    Raises: DataError for metrics that cannot be read.
    """
    noted = read_report(folder).get("numbers")
    if recipe.provenance is None or not isinstance(noted, dict):
        return None
    numbers = Numbers.model_validate(noted)
    return RunFacts(recipe, recipe.provenance, read_metrics(folder), numbers, read_evaluation(folder))


def write_card(folder: Path, facts: RunFacts) -> None:
    """Write the card into a folder whose other files are there already: a run's result, or an export. Raises: DiskFull."""
    write_text(folder / CARD, model_card(facts, library_of(folder)))


def library_of(folder: Path) -> Library:
    """Which library reads what is in a folder."""
    if (folder / OwnForm.CONFIG).is_file():
        return "luthier"
    if (folder / PEFT_WEIGHTS).is_file():
        return "peft"
    if (folder / ADAPTERHUB_WEIGHTS).is_file():
        return "adapters"
    return "gguf" if any(folder.glob("*.gguf")) else "transformers"


def model_card(facts: RunFacts, library: Library) -> str:
    """The card as Markdown, its header first."""
    recipe = facts.recipe
    base = published(recipe.model) if recipe.model.config is None else Published(None, None)
    sections = [
        f"---\n{to_yaml(_header(recipe, base, library))}---",
        f"# {_title(recipe)}",
        _about(facts, base),
        "## Figures",
        "\n".join(f"- {line}" for line in _figures(facts)),
        *_evaluation(facts.evaluation),
        "## How to load it",
        _loading(facts, base, library),
        "## How it was made",
        "Every setting, without names of folders:",
        f"```yaml\n{_settings(facts).rstrip()}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _header(recipe: Recipe, base: Published, library: Library) -> dict[str, Any]:
    """What the hub reads: only what is known."""
    values: dict[str, Any] = {"library_name": library}
    if base.license is not None:
        values["license"] = base.license
    if base.name is not None:
        values["base_model"] = base.name
        if library in ("peft", "adapters", "luthier"):
            values["base_model_relation"] = "adapter"
    if on_hub := list(dict.fromkeys(hub_set(name).name for name in files_of(recipe.data.train) if is_hub_name(name))):
        values["datasets"] = on_hub
    return {**values, "tags": ["luthier", recipe.method.kind, recipe.objective.kind]}


def _title(recipe: Recipe) -> str:
    return f"{_base_name(recipe)} tuned on {', '.join(_data(recipe))}"


def _base_name(recipe: Recipe) -> str:
    return _bare(recipe.model.name)


def _bare(name: str) -> str:
    """A name of the hub as it is; of a path its last part, since the folders are of one machine alone."""
    return name if is_hub_name(name) else PurePath(name).name


def _data(recipe: Recipe) -> list[str]:
    return [_bare(name) for name in files_of(recipe.data.train)]


def _about(facts: RunFacts, base: Published) -> str:
    recipe, from_ = facts.recipe, facts.made_from
    known = (
        f" ({base.name} on the hub{base.note and f'; {base.note}'})"
        if base.name not in (None, recipe.model.name)
        else ""
    )
    begun = f"{_base_name(recipe)}{known}, weights SHA-256 `{from_.model_sha256}`"
    if recipe.model.config is not None:
        begun = f"none: random weights of seed {recipe.seed}"
    of_base = base.license or "not stated in its files; look at the base model's own page"
    held_out = f", and {facts.numbers.num_rows[1]:,} held out" if facts.numbers.num_rows[1] else ""
    lines = [
        f"- Base: {begun}.",
        f"- License of the base, which holds for what is derived of it: {of_base}."
        if recipe.model.config is None
        else "",
        f"- Data: {', '.join(_data(recipe))}: {facts.numbers.num_rows[0]:,} rows{held_out}; SHA-256 of rows and tokens `{from_.data_sha256}`.",
        f"- Method: {recipe.method.kind}, {facts.numbers.num_trained:,} numbers trained; objective {recipe.objective.kind}; seed {recipe.seed}.",
        f"- Made with Luthier {from_.luthier}, torch {from_.torch}, transformers {from_.transformers}.",
    ]
    return "\n".join(line for line in lines if line)


def _figures(facts: RunFacts) -> list[str]:
    steps = facts.metrics[-1]["step"] if facts.metrics else 0
    return [f"{steps} steps.", *loss_lines(facts.metrics, type(facts.recipe.objective))]


_TUNED = "tuned"


def _evaluation(found: Mapping[str, Any] | None) -> list[str]:
    """The verdict and the measures against the base, or what stood for it; further models, which have names of here, are left out."""
    if found is None or _TUNED not in found.get("verdicts", {}):
        return []
    first = found["candidates"][0]
    measures = [*found["measures"], *((found.get("forgetting") or {}).get("measures", []))]
    rows = [["measure", first, _TUNED, f"{_TUNED} - {first}", "rows"], ["---"] * 5]
    rows += [
        [
            measure["name"].replace("|", "\\|"),
            _with_interval(measure["estimates"][first], ".3f"),
            _with_interval(measure["estimates"][_TUNED], ".3f"),
            _with_interval(measure["comparisons"][_TUNED]["difference"], "+.3f"),
            str(measure["rows"]),
        ]
        for measure in measures
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return ["## Evaluation", found["verdicts"][_TUNED]["sentence"], table, "In brackets: 95 % intervals."]


def _with_interval(estimate: Mapping[str, float | None] | None, form: str) -> str:
    """A number with its interval; infinite ones are null in JSON. Nothing for a difference that is not given."""
    if estimate is None:
        return ""
    value, low, high = ("∞" if number is None else f"{number:{form}}" for number in estimate.values())
    return f"{value} [{low}, {high}]"


def _settings(facts: RunFacts) -> str:
    """The recipe with the last parts of paths alone."""
    return to_yaml(_without_folders(values_of(facts.recipe.model_copy(update={"provenance": None}))))


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value


def _loading(facts: RunFacts, base: Published, library: Library) -> str:
    auto = facts.numbers.auto_class
    name = base.name or "FOLDER_OF_THE_BASE"
    match library:
        case "transformers":
            return _python(
                f'from transformers import AutoTokenizer, {auto}\n\nmodel = {auto}.from_pretrained("THIS_FOLDER")\ntokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")'
            )
        case "peft":
            return _python(
                f"from peft import PeftModel\nfrom transformers import AutoTokenizer, {auto}\n\n"
                f'base = {auto}.from_pretrained("{name}"{_labels(facts)})\n'
                f'model = PeftModel.from_pretrained(base, "THIS_FOLDER")\n'
                f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
            )
        case "adapters":
            return _python(
                f'from adapters import AutoAdapterModel\n\nmodel = AutoAdapterModel.from_pretrained("{name}")\n'
                'model.load_adapter("THIS_FOLDER", use_safetensors=True, set_active=True)'
            )
        case "gguf":
            return "llama.cpp, and what builds on it, reads the `.gguf` file in this folder."
        case "luthier":
            return (
                "The adapter is in Luthier's own form. A recipe goes on from it with `method: {from: THIS_FOLDER}`; with the "
                "folder of its run, `luthier chat RUN` asks it."
            )


def _labels(facts: RunFacts) -> str:
    """What a base must be told of a head that it does not have."""
    count = facts.numbers.num_classes
    return f", num_labels={count}" if count else ""


def _python(code: str) -> str:
    return f"```python\n{code}\n```"
