"""`luthier plan`: what a recipe needs, in words and as a document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from program import within
from tiny_runs import recipe_values, write_rows

from luthier.cli.plan import table_text
from luthier.errors import UsageError
from luthier.planner.arithmetic import facts
from luthier.planner.plan import untimed_work
from luthier.planner.table import TableRow
from luthier.recipe import make_recipe
from luthier.sizes import parse_size


def written(tmp_path: Path, tiny_model: Path, **parts: Any) -> Path:
    path = tmp_path / "recipe.yaml"
    values = recipe_values(tiny_model, write_rows(tmp_path / "rows.jsonl", 12), **parts)
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * 2**30), ("80 GB", 80 * 10**9), ("1.5g", 15 * 10**8), ("512M", 512 * 10**6), ("1000", 1000)],
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert parse_size(text, "--device-memory") == size


@pytest.mark.parametrize("text", ["much", "-3GB", "3 XB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        parse_size(text, "--device-memory")


def test_a_plan_says_how_much_when_and_whether_it_is_there(tmp_path: Path, tiny_model: Path) -> None:
    recipe = written(tmp_path, tiny_model)
    ended = within("plan", recipe, "--price-per-hour", "3600", "--json", folder=tmp_path)
    plan = ended.document
    assert ended.code == 0
    assert plan["verdict"] == "fits"
    assert sum(plan["parts"].values()) == plan["peak_bytes"]
    assert plan["disk_bytes"] == sum(plan["disk_parts"].values()) > 0
    assert plan["num_steps"] == 6
    assert plan["seconds"] > 0
    assert plan["cost"] == pytest.approx(plan["seconds"])
    assert plan["untimed"] is None
    assert plan["beside_seconds"] == ["checkpoints"]
    assert not (tmp_path / "runs").exists()


def test_what_does_not_fit_is_told_with_what_would_help(tmp_path: Path, tiny_model: Path) -> None:
    recipe = written(tmp_path, tiny_model, method={"kind": "full", "rank": None})
    ended = within("plan", recipe, "--device-memory", "300MB", "--no-time", folder=tmp_path)
    assert ended.code == 0
    assert "does not fit into 300.0 MB" in ended.out
    assert "method: {kind: lora}" in ended.out
    assert "Time: not measured: --no-time asks for none." in ended.out
    helping = ended.out.split("What would help most:\n")[1].splitlines()
    sizes = [parse_size(line.rpartition(": ")[2], "--device-memory") for line in helping]
    assert len(sizes) == 3
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--gpu", "--device-memory", "24GiB"], "a GPU that need not be here"),
        (["--no-time"], "--no-time asks for none"),
        (["--table"], "a table compares memory alone"),
        (["--shards", "2"], "what ranks send each other"),
    ],
)
def test_a_price_without_a_time_is_refused_and_says_why(
    options: list[str], why: str, tmp_path: Path, tiny_model: Path
) -> None:
    ended = within("plan", written(tmp_path, tiny_model), "--price-per-hour", "2", *options, folder=tmp_path)
    assert ended.code == 2
    assert why in ended.err


def test_what_the_time_leaves_out_is_said() -> None:
    values = {"kind": "grpo", "rewards": [{"grader": {"type": "length", "most": 9}}]}
    recipe = make_recipe(recipe_values(Path("model"), Path(__file__), objective=values, data={"validation": "auto"}))
    assert untimed_work(recipe) == ("drawing answers", "their rewards", "evaluation", "checkpoints")


@pytest.mark.parametrize("place", ["config.json", ""])
def test_a_config_alone_and_a_folder_without_weights_are_planned(place: str, tmp_path: Path, tiny_model: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    recipe = written(tmp_path, bare / place)
    plan = within("plan", recipe, "--no-time", "--json", folder=tmp_path).document
    assert plan["are_imagined"]
    assert plan["num_parameters"] > plan["num_trainable"] > 0


def test_a_named_shape_needs_no_files_and_shards_share_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    rows = str(write_rows(tmp_path / "rows.jsonl", 1))  # they are not read: there is no tokenizer
    values = {"model": "tinyllama-1.1b", "data": {"train": rows, "validation": "none"}}
    recipe.write_text(yaml.safe_dump({**values, "training": {"gradient_checkpointing": True}}))
    options = ("--gpu", "--device-memory", "24GiB", "--json")
    alone = within("plan", recipe, *options, folder=tmp_path).document
    shared = within("plan", recipe, *options, "--shards", "2", folder=tmp_path).document
    assert alone["num_parameters"] - alone["num_trainable"] == pytest.approx(1.1e9, rel=0.01)
    assert alone["parts"]["weights"] == pytest.approx(2.2e9, rel=0.01)
    assert shared["parts"]["weights"] == pytest.approx(1.1e9, rel=0.01)
    assert alone["are_imagined"]


def test_a_table_compares_methods_and_forms_of_the_base(tmp_path: Path, tiny_model: Path) -> None:
    ended = within("plan", written(tmp_path, tiny_model), "--table", "--json", folder=tmp_path)
    rows = {(row["method"], row["quantization"], row["gradient_checkpointing"]): row for row in ended.document["rows"]}
    assert rows["full", None, False]["peak_bytes"] > rows["lora", None, False]["peak_bytes"]
    assert ("full", "nf4", False) not in rows
    assert rows["lora", "nf4", True]["verdict"] == "fits"
    known = {fact["what"]: fact for fact in ended.document["arithmetic"]}
    assert known["1 B parameters in fp32, loaded"]["num_bytes"] == 4 * 10**9
    made = [TableRow(**row) for row in ended.document["rows"]]
    lines = table_text(made, facts(), ended.document["memory_bytes"]).splitlines()
    assert lines[0].startswith("Into ")
    assert lines[1].split()[:5] == ["method", "quantization", "checkpointing", "trained", "peak"]
    assert len(lines) == 2 + len(made) + 2 + len(facts())
    (quoted,) = [line for line in lines if line.startswith('"up to 80 GB to train 1 B"')]
    assert "20 times the 4 GB" in quoted


def test_a_gpu_that_is_not_here_needs_its_memory_named(tmp_path: Path, tiny_model: Path) -> None:
    ended = within("plan", written(tmp_path, tiny_model), "--gpu", folder=tmp_path)
    assert ended.code == 2
    assert "--device-memory" in ended.err
