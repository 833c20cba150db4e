"""The page of all fields and the commented recipe say what the settings say."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.methods import LoRA
from luthier.recipe import Recipe, load_recipe, make_recipe
from luthier.recipe.fields import all_fields, fields_of, kind_of, places_at, type_text
from luthier.recipe.reference import commented_recipe, recipe_page
from luthier.training.settings import Schedule


def test_the_page_has_a_row_for_every_field():
    page = recipe_page()
    names = [place.name for place in all_fields(Recipe)]
    assert len(names) > 50
    for name in names:
        assert f"| `{name}` |" in page


def test_every_field_has_a_meaning():
    silent = [place.name for place in all_fields(Recipe) if not place.meaning and not place.name.endswith(".kind")]
    assert silent == []


def test_the_commented_recipe_is_the_recipe_of_its_defaults(tmp_path: Path):
    (tmp_path / "my rows.jsonl").write_text("{}")
    path = tmp_path / "recipe.yaml"
    path.write_text(commented_recipe("smollm2-135m", "my rows.jsonl", "12 rows.\n\nNext: ..."))
    expected = make_recipe({"model": "smollm2-135m", "data": {"train": tmp_path / "my rows.jsonl"}})
    assert load_recipe(path) == expected
    assert path.read_text().startswith("# 12 rows.\n#\n# Next")


def test_a_kind_chooses_among_the_fields_of_a_union():
    names = {place.name for place in places_at(Recipe, ("method",), {"method": {"kind": "full"}})}
    assert "method.layers" in names
    assert "method.rank" not in names


def test_a_methods_own_fields_come_after_its_kind_and_before_those_that_it_shares():
    names = [place.name for place in fields_of(LoRA)]
    assert names[:2] == ["kind", "rank"]
    assert set(names[-3:]) == {"from", "layers", "targets"}


def test_a_kind_with_several_values_selects_nothing():
    assert kind_of(Schedule) is None


def test_types_are_told_in_words():
    assert type_text(int | None) == "whole number or null"
    assert type_text(tuple[str, ...]) == "list of text"
    assert type_text(dict[str, int]) == "mapping of text to whole number"


@pytest.mark.parametrize("objective", ["grpo", "ppo", "rloo", "raft"])
def test_a_commented_recipe_of_what_learns_from_rewards_has_one_to_begin_with(objective: str, tmp_path: Path):
    (tmp_path / "sums.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    path = tmp_path / "recipe.yaml"
    path.write_text(commented_recipe("smollm2-135m", "sums.jsonl", "1 row.", objective))
    recipe = load_recipe(path)
    assert recipe.objective.kind == objective
    assert recipe.objective.rewards[0].grader.kind == "number"
