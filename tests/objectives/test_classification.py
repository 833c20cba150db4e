"""Classification: the loss is the mean cross-entropy over classes, in whatever micro-batches, and classes settle once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models.rows import class_rows
from models.tiny import CLASSES, tiny_model
from models.tuned import LENGTHS
from near import assert_near
from pydantic import ValidationError

from luthier.data.packing import collate
from luthier.errors import RecipeError
from luthier.objectives import Classification
from luthier.recipe import dump_recipe, load_recipe, make_recipe


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_the_loss_is_the_cross_entropy_of_the_logits_summed_over_rows(name: str) -> None:
    model = tiny_model(name, purpose="classes")
    rows = class_rows(LENGTHS, model.anatomy.family.pooled)
    batch = collate(rows, model.layout, pad_id=0)
    outputs = model.forward(batch)
    logits_NC = outputs.logits_NC
    loss = Classification(classes=CLASSES).loss_sum(outputs)
    assert_near(loss, F.cross_entropy(logits_NC, batch.targets.token_N, reduction="sum"))
    assert batch.learned_weight == len(rows)
    alone = sum(model.forward(collate([row], model.layout, pad_id=0)).logprob_N.sum() for row in rows)
    assert_near(-torch.as_tensor(alone), loss)


def test_classes_that_are_given_hold_and_others_come_from_the_rows() -> None:
    assert Classification().settled(("a", "b")).classes == ("a", "b")
    assert Classification(classes=("b", "a", "c")).settled(("a", "b")).classes == ("b", "a", "c")
    head = Classification(classes=("b", "a")).head(5)
    assert (head.classes, head.seed) == (("b", "a"), 5)


@pytest.mark.parametrize("classes", [("a",), ("a", "b", "a")])
def test_too_few_classes_or_one_twice_are_refused(classes: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        Classification(classes=classes)


def test_a_recipe_keeps_the_settled_classes(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    recipe = make_recipe({"model": "m", "data": {"train": str(rows)}, "objective": {"kind": "classification"}})
    settled = recipe.model_copy(update={"objective": recipe.objective.settled(("a", "b"))})
    (tmp_path / "r.yaml").write_text(dump_recipe(settled))
    assert load_recipe(tmp_path / "r.yaml").objective == Classification(classes=("a", "b"))


@pytest.mark.parametrize(("form", "kind"), [("classification", "sft"), ("chat", "classification")])
def test_a_form_of_rows_that_the_objective_does_not_take_is_refused(form: str, kind: str) -> None:
    values = {"model": "m", "data": {"train": "rows.jsonl", "format": form}, "objective": {"kind": kind}}
    with pytest.raises(RecipeError, match=f"not what objective.kind {kind} learns from") as caught:
        make_recipe(values)
    assert caught.value.field == "data.format"
