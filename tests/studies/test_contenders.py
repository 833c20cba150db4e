"""The methods that a comparison is given: by kinds, or in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import recipe_values, write_rows

from luthier.errors import NotFound, RecipeError, UsageError
from luthier.methods import WARP, LoRA
from luthier.quantization.settings import QuantizationSettings
from luthier.recipe import Recipe, make_recipe
from luthier.studies.contenders import contenders_of_all, contenders_of_kinds, read_contenders


@pytest.fixture
def recipe(tiny_model: Path, tmp_path: Path) -> Recipe:
    """A recipe whose own method is a LoRA of rank 3 at a rate of its own."""
    parts = {"method": {"kind": "lora", "rank": 3}, "training": {"peak_lr": 0.5}}
    return make_recipe({**recipe_values(tiny_model, write_rows(tmp_path / "rows.jsonl", 24)), **parts})


def written(folder: Path, text: str) -> Path:
    path = folder / "methods.yaml"
    path.write_text(text)
    return path


def test_the_own_method_keeps_its_settings_and_rate_and_others_have_their_defaults(recipe: Recipe) -> None:
    own, other = contenders_of_kinds(recipe, ["lora", "dora"], seeds=2)
    assert own.recipe == recipe
    assert (own.name, own.kind, own.seeds) == ("lora", "lora", 2)
    assert other.kind == "dora"
    assert other.recipe.training.peak_lr is None
    assert other.recipe.model_copy(update={"method": recipe.method, "training": recipe.training}) == recipe


def test_all_leaves_out_what_needs_settings(recipe: Recipe) -> None:
    found, left_out = contenders_of_all(recipe)
    assert {"warp", "stack", "adapter-fusion"} <= set(left_out)
    assert {"lora", "full", "houlsby", "ipt"} <= {each.kind for each in found}


def test_a_file_gives_names_settings_rates_and_seeds(recipe: Recipe, tmp_path: Path) -> None:
    text = """
lora:
lora-9:
  method: {kind: lora, rank: 9}
  training: {peak_lr: 1e-3}
  seeds: 3
warp:
  method: {classes: [yellow, blue]}
dora: {}
loftq:
  quantization: {kind: nf4, block: 32}
lora-4bit: {method: {kind: lora}, quantization: {kind: fp4}}
"""
    own, nine, warp, dora, loftq, packed = read_contenders(recipe, written(tmp_path, text), seeds=2)
    assert own.recipe == recipe
    assert nine.recipe.method == LoRA(rank=9)
    assert (nine.name, nine.recipe.training.peak_lr, nine.seeds) == ("lora-9", 1e-3, 3)
    assert isinstance(warp.recipe.method, WARP)
    assert warp.recipe.method.classes == ("yellow", "blue")
    assert warp.recipe.training.peak_lr is None
    assert (dora.kind, dora.seeds) == ("dora", 2)
    assert loftq.recipe.quantization == QuantizationSettings(kind="nf4", block=32)
    assert packed.recipe.quantization == QuantizationSettings(kind="fp4")
    assert own.recipe.quantization is None


def test_a_rate_alone_leaves_the_own_method_as_it_is(recipe: Recipe, tmp_path: Path) -> None:
    (found,) = read_contenders(recipe, written(tmp_path, "lora: {training: {peak_lr: 0.25}}"))
    assert found.recipe.method == recipe.method
    assert found.recipe.training.peak_lr == 0.25


def test_paths_are_those_of_the_file(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "deep" / "one").mkdir(parents=True)
    path = written(tmp_path / "deep", "adapter-fusion: {method: {adapters: [one]}}")
    (found,) = read_contenders(recipe, path)
    assert found.recipe.method.model_dump()["adapters"] == (str(tmp_path / "deep" / "one"),)


@pytest.mark.parametrize(
    ("text", "line", "field", "words"),
    [
        ("lora: {}\ndora:\n  method: {rankk: 3}\n", 3, "method.rankk", "rank"),
        ("lora:\n  training: {epochs: 3}\n", 2, "lora.training.epochs", "the same for all"),
        ("lora:\n  data: {train: x}\n", 2, "lora.data", "the same for all"),
        ("lora:\n  quantization: nf4\n", 2, "lora.quantization", "mapping"),
        ("lora:\n  quantization: {kind: nf3}\n", 2, "quantization.kind", "nf4"),
        ("lora:\n  seeds: 0\n", 2, "lora.seeds", "whole number"),
        ("lora: 3\n", 1, "lora", "mapping"),
        ("lora: {method: dora}\n", 1, "lora.method", "mapping"),
        ("../lora: {}\n", 1, "../lora", "folder"),
        ("lorra: {}\n", 1, "method.kind", "lora"),
        ("- lora\n", None, None, "mapping"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(
    recipe: Recipe, tmp_path: Path, text: str, line: int | None, field: str | None, words: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        read_contenders(recipe, path)
    assert (caught.value.file, caught.value.line, caught.value.field) == (str(path), line, field)
    assert words in str(caught.value)


def test_a_file_that_is_not_there_and_kinds_that_do_not_do(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_contenders(recipe, tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="no method 'lorra'"):
        contenders_of_kinds(recipe, ["lora", "lorra"])
    with pytest.raises(UsageError, match="'warp' needs settings") as caught:
        contenders_of_kinds(recipe, ["lora", "warp"])
    assert "YAML file" in caught.value.mend
    with pytest.raises(UsageError, match="once"):
        contenders_of_kinds(recipe, ["lora", "lora"])
