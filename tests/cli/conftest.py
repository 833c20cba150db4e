"""A folder with rows and a recipe, and in it one finished run that the tests of a session share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import luthier

RECIPE = """model: {model}
data: {{train: rows.jsonl, max_length: 128}}
training: {{steps: 4, rows_per_step: 4, tokens_per_micro_batch: 256, workers: 1, checkpoint_every: 2}}
"""


def write_rows(path: Path, count: int = 40) -> None:
    """Write prompt/completion rows."""
    rows = [{"prompt": f"Where is parcel {i}?", "completion": f"Parcel {i} is on its way."} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def desk(tmp_path: Path, tiny_model: Path) -> Path:
    """A working folder with rows.jsonl and recipe.yaml."""
    write_rows(tmp_path / "rows.jsonl")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=tiny_model))
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A working folder in which `luthier train recipe.yaml` has run; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    write_rows(folder / "rows.jsonl")
    (folder / "recipe.yaml").write_text(RECIPE.format(model=tiny_model))
    ended = luthier("train", "recipe.yaml", folder=folder)
    assert ended.code == 0, ended.err
    return folder
