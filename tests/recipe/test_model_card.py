"""The model card says what is known of a run, leaves the folders of this machine out, and its way to load the model works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_model import write_tiny_encoder, write_tiny_model
from tiny_runs import begin, one_thread, recipe_values, write_rows

from luthier import run
from luthier.evaluation.intervals import Estimate
from luthier.evaluation.measure import Comparison, Measure
from luthier.evaluation.run_report import write_evaluation
from luthier.evaluation.verdict import Evaluation
from luthier.models.licenses import Published, published
from luthier.models.settings import ModelSettings
from luthier.objectives import SFT
from luthier.recipe import make_recipe
from luthier.recipe.loading import recipe_of_run
from luthier.recipe.model_card import facts_of_run, library_of, model_card, write_card
from luthier.store.files import folder_fault


@pytest.fixture(autouse=True)
def _no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than the training."""
    monkeypatch.setattr(run, "write_loss_plot", lambda metrics, path, objective: None)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model whose own card names its license."""
    folder = write_tiny_model(tmp_path / "bases" / "tiny")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    return folder


def card_of(model: Path, folder: Path, **parts: Any) -> str:
    rows = write_rows(folder / "rows.jsonl", 12)
    with one_thread():
        begin(recipe_values(model, rows, data={"validation": str(rows)}, **parts), folder / "run")
    (card,) = (folder / "run").glob("*/README.md")
    assert folder_fault(card.parent) is None
    return card.read_text()


def header_of(card: str) -> dict[str, Any]:
    _, header, _ = card.split("---\n", 2)
    values = yaml.safe_load(header)
    assert isinstance(values, dict)
    return values


def loaded(card: str, base: Path, result: Path) -> Any:
    """What the card's own lines of Python load, with the places that it leaves open filled in."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER_OF_THE_BASE", str(base)).replace("THIS_FOLDER", str(result)), names)
    assert names["tokenizer"]("a")["input_ids"]
    return names["model"]


def test_an_adapters_card_says_base_license_data_method_and_figures(base: Path, tmp_path: Path):
    card = card_of(base, tmp_path)
    assert header_of(card) == {"library_name": "peft", "license": "mit", "tags": ["luthier", "lora", "sft"]}
    assert "# tiny tuned on rows.jsonl" in card
    assert "12 rows, and 12 held out" in card
    assert re.search(r"lora, [\d,]+ numbers trained", card)
    assert "6 steps." in card
    assert "Training loss" in card
    assert "Held-out loss" in card
    assert re.search(r"weights SHA-256 `[0-9a-f]{64}`", card)


def test_no_folder_of_this_machine_is_named(base: Path, tmp_path: Path):
    card = card_of(base, tmp_path)
    assert str(tmp_path) not in card
    assert "bases" not in card


def test_the_card_loads_the_adapter_with_peft(base: Path, tmp_path: Path):
    model = loaded(card_of(base, tmp_path), base, tmp_path / "run" / "adapter")
    assert type(model).__name__ == "PeftModelForCausalLM"


def test_the_card_of_a_whole_model_loads_it_with_transformers(base: Path, tmp_path: Path):
    card = card_of(base, tmp_path, method={"kind": "full", "rank": None}, training={"peak_lr": 1e-3})
    assert header_of(card)["library_name"] == "transformers"
    model = loaded(card, base, tmp_path / "run" / "model")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert isinstance(model(torch.tensor([[5, 6]])).logits, torch.Tensor)


def test_the_card_of_a_classifier_loads_it_with_its_classes(tmp_path: Path):
    bert = write_tiny_encoder(tmp_path / "bert")
    rows = [f'{{"text": "row {n} is {word}", "label": "{word}"}}' for n in range(12) for word in ("good", "bad")]
    (tmp_path / "classes.jsonl").write_text("\n".join(rows))
    values = recipe_values(bert, tmp_path / "classes.jsonl", data={"max_length": 32})
    with one_thread():
        begin({**values, "objective": {"kind": "classification"}}, tmp_path / "run")
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "num_labels=2" in card
    assert loaded(card, bert, tmp_path / "run" / "adapter").config.num_labels == 2


def test_an_adapter_in_our_own_form_names_our_own_door(base: Path, tmp_path: Path):
    card = card_of(base, tmp_path, method={"kind": "loreft", "rank": None})
    assert header_of(card)["library_name"] == "luthier"
    assert "luthier chat RUN" in card
    assert "```python" not in card


def test_an_export_gets_the_card_of_its_own_files_from_the_runs_folder(base: Path, tmp_path: Path):
    card = card_of(base, tmp_path)
    folder = tmp_path / "run"
    facts = facts_of_run(folder, recipe_of_run(folder))
    assert facts is not None
    assert model_card(facts, library_of(folder / "adapter")) == card
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model.gguf").touch()
    write_card(tmp_path / "export", facts)
    exported = (tmp_path / "export" / "README.md").read_text()
    assert header_of(exported)["library_name"] == "gguf"
    assert exported.split("## Figures")[1].split("## How to load")[0] in card
    (folder / "report.json").unlink()
    assert facts_of_run(folder, recipe_of_run(folder)) is None


def test_the_card_of_an_evaluated_run_tells_verdict_and_measures_and_no_model_of_here(base: Path, tmp_path: Path):
    card_of(base, tmp_path)
    folder, other = tmp_path / "run", str(tmp_path / "other")
    better = Comparison(Estimate(0.25, 0.125, 0.375), 1e-9, 48, 0)
    measure = Measure(
        "ROUGE-L", True, 48, tuple(Estimate(n, n - 0.125, n + 0.125) for n in (0.5, 0.75, 0.5)), (better, better)
    )
    found = Evaluation(("base", "tuned", other), 48, (measure,), (), (), subject="tuned")
    write_evaluation(folder, found, SFT, f"luthier evaluate {folder}")
    facts = facts_of_run(folder, recipe_of_run(folder))
    assert facts is not None
    card = model_card(facts, "peft")
    assert found.outcomes["tuned"].sentence in card
    assert "| ROUGE-L | 0.500 [0.375, 0.625] | 0.750 [0.625, 0.875] | +0.250 [+0.125, +0.375] | 48 |" in card
    assert str(tmp_path) not in card


def test_a_base_without_a_license_is_not_given_one(tmp_path: Path):
    card = card_of(write_tiny_model(tmp_path / "tiny"), tmp_path)
    assert "license" not in header_of(card)
    assert "not stated in its files" in card


def test_the_built_in_model_is_known_by_its_name_on_the_hub():
    found = published(ModelSettings(name="smollm2-135m"))
    assert (found.name, found.license) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")


@pytest.mark.parametrize(
    "card", ["---\nlicense: [\n---\n", "---\n- a\n---\n", "no header", "---\nlicense: {a: b}\n---\n"]
)
def test_a_card_that_names_no_license_gives_none(card: str, tmp_path: Path):
    write_tiny_model(tmp_path / "tiny")
    (tmp_path / "tiny" / "README.md").write_text(card)
    assert published(
        make_recipe({"model": str(tmp_path / "tiny"), "data": {"train": str(tmp_path)}}).model
    ) == Published(None, None)
