"""Recipes from files and from values: what is read, what is refused, and what the refusal says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from luthier.data.reading import read_rows
from luthier.errors import LuthierError, NotFound, RecipeError
from luthier.methods import IPT, METHODS, Full, LoRA
from luthier.recipe import Recipe, dump_recipe, json_schema, load_recipe, make_recipe
from luthier.training.optimizers import Lion

SHORTEST = "model: smollm2-135m\ndata: {train: rows.jsonl}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows, apart from the working folder."""
    home = tmp_path / "recipes"
    home.mkdir()
    (home / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return home


def read(folder: Path, text: str, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, overrides)


def refusal(folder: Path, text: str, *overrides: str) -> LuthierError:
    with pytest.raises(LuthierError) as caught:
        read(folder, text, *overrides)
    return caught.value


def test_the_shortest_recipe_is_a_model_and_rows(folder: Path):
    recipe = read(folder, SHORTEST)
    assert recipe.model.name == "smollm2-135m"
    assert recipe.data.train == str(folder / "rows.jsonl")
    assert recipe.method == LoRA()


def test_a_written_recipe_reads_back_the_same(folder: Path):
    recipe = read(folder, SHORTEST + "method: {kind: full, layers: [0, 1]}\ntraining: {peak_lr: 1e-5}\nseed: 7\n")
    assert read(folder, dump_recipe(recipe)) == recipe


def test_plain_values_make_the_same_recipe_as_a_file(folder: Path):
    values = {"model": "smollm2-135m", "data": {"train": folder / "rows.jsonl"}, "method": {"targets": ("q_proj",)}}
    assert make_recipe(values) == read(folder, SHORTEST + "method: {targets: [q_proj]}\n")


def test_values_that_yaml_cannot_hold_are_refused():
    with pytest.raises(RecipeError, match="text, numbers, lists and mappings"):
        make_recipe({"model": object()})


# ── overrides ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_override_goes_before_the_file_and_makes_the_blocks_it_needs(folder: Path):
    recipe = read(folder, SHORTEST, "training.schedule.kind=linear", "training.peak_lr=1e-3", "seed=3")
    assert recipe.training.schedule.kind == "linear"
    assert recipe.training.peak_lr == 1e-3
    assert recipe.seed == 3


def test_an_override_may_add_to_a_model_given_by_name_alone(folder: Path):
    recipe = read(folder, SHORTEST, "model.dtype=bf16")
    assert (recipe.model.name, recipe.model.dtype) == ("smollm2-135m", "bf16")


def test_an_override_may_be_a_list_or_a_whole_block(folder: Path):
    recipe = read(folder, SHORTEST + "method: {kind: lora, rank: 3}\n", "method={kind: full, layers: [1]}")
    assert recipe.method == Full(layers=(1,))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.epochs=abc", "Give a number"),
        ("training.epoch=3", "Did you mean epochs?"),
        ("training.epochs", "key=value"),
        ("=3", "key=value"),
        ("training..epochs=3", "key=value"),
        ("training.epochs=[", "not valid YAML"),
        ("training.peak_lr=1e400", "The value is inf"),
    ],
)
def test_a_wrong_override_is_named_in_the_refusal(folder: Path, override: str, says: str):
    error = refusal(folder, SHORTEST, override)
    assert error.file == f"--set {override}"
    assert says in str(error)


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────

WRONG = [
    ("methd: {kind: lora}", 3, "methd", "Did you mean method?"),
    ("training:\n  epoch: 3", 4, "training.epoch", "Did you mean epochs?"),
    ("lr: 1e-4", 3, "lr", "Did you mean training.peak_lr?"),
    ("epochs: 3", 3, "epochs", "Did you mean training.epochs?"),
    ("method: {kind: lorra}", 3, "method.kind", "Did you mean lora?"),
    ("method:\n  kind: full\n  rank: 3", 5, "method.rank", "It belongs to kind lora"),
    ("method: lora", 3, "method", "Give a mapping"),
    ("method: {rank: 0}", 3, "method.rank", "Give at least 1."),
    ("method: {rank: '8'}", 3, "method.rank", "Give a whole number."),
    ("method: {rank: 8.0}", 3, "method.rank", "Give a whole number."),
    ("method: {targets: [1]}", 3, "method.targets[0]", "Give text."),
    ("method: {rank_pattern: {'(': 3}}", 3, "method", "regular expression"),
    ("objective: {kind: magic}", 3, "objective.kind", "Use sft, clm, mlm, "),
    ("quantization: {kind: nf3}", 3, "quantization.kind", "Give 'nf4', 'fp4', 'int8', 'mxfp4' or 'gguf'."),
    ("training: 3", 3, "training", "Give a mapping with some of the fields epochs, steps"),
    ("training: {epochs: 0}", 3, "training.epochs", "Give more than 0."),
    ("training: {epochs: true}", 3, "training.epochs", "Give a number."),
    ("training: {rows_per_step: 1.5}", 3, "training.rows_per_step", "Give a whole number."),
    ("training: {workers: many}", 3, "training.workers", "Give 'auto' or a whole number."),
    ("training: {peak_lr: .inf}", 3, "training.peak_lr", "finite"),
    ("training: {rows_per_step: 8, tokens_per_step: 99}", 3, "training", "both set. Keep one"),
    ("training:\n  tokens_per_micro_batch: 512", 2, "data.max_length", "lower data.max_length or raise"),
    ("seed: -1", 3, "seed", "Give at least 0."),
    ("yes: 1", None, "[1]", "a key here is not text"),
    ("seed: 1\nseed: 2", 4, "seed", "given twice"),
]


@pytest.mark.parametrize(("text", "line", "field", "says"), WRONG, ids=[field for _, _, field, _ in WRONG])
def test_a_wrong_recipe_is_refused_with_its_line_its_field_and_the_mend(
    folder: Path, text: str, line: int, field: str, says: str
):
    error = refusal(folder, SHORTEST + text + "\n")
    assert (error.exit_code, error.line, error.field) == (3, line, field)
    assert says.lower() in str(error).lower()
    assert error.mend


def test_all_faults_are_told_at_once(folder: Path):
    error = refusal(folder, SHORTEST + "lr: 1\ntraining: {epochs: -1}\nseed: x\n")
    assert (error.field, error.line) == ("lr", 3)
    assert "also line 4, field 'training.epochs'" in error.mend
    assert "also line 5, field 'seed'" in error.mend


def test_early_stopping_needs_held_out_rows(folder: Path):
    text = "model: m\ndata: {train: rows.jsonl, validation: none}\ntraining: {early_stopping: {patience: 2}}\n"
    error = refusal(folder, text)
    assert (error.field, error.line) == ("training.early_stopping", 3)


@pytest.mark.parametrize(
    ("text", "field"), [("data: {train: rows.jsonl}", "model"), ("model: m\ndata: {max_length: 9}", "data.train")]
)
def test_a_missing_field_is_named(folder: Path, text: str, field: str):
    error = refusal(folder, text)
    assert error.field == field
    assert "is missing" in error.found


@pytest.mark.parametrize("text", ["", "  \n", "- a\n- b\n", "just text"])
def test_what_is_no_mapping_is_refused_with_the_shortest_recipe(folder: Path, text: str):
    error = refusal(folder, text)
    assert error.exit_code == 3
    assert "model: smollm2-135m" in error.mend


def test_a_recipe_that_is_not_there_names_its_neighbour(folder: Path):
    (folder / "tickets.yaml").write_text(SHORTEST)
    with pytest.raises(NotFound, match=r"Did you mean .*tickets\.yaml") as caught:
        load_recipe(folder / "ticket.yaml")
    assert caught.value.exit_code == 4


def test_a_folder_a_data_file_and_binary_bytes_are_no_recipes(folder: Path):
    (folder / "binary.yaml").write_bytes(b"\x80\x04\x95\xff\xfe")
    for name, says in (("", "folder"), ("rows.jsonl", "luthier new"), ("binary.yaml", "UTF-8")):
        with pytest.raises(RecipeError, match=says):
            load_recipe(folder / name)


def test_a_recipe_below_a_file_is_not_found_and_one_that_the_system_refuses_is_told(folder: Path):
    with pytest.raises(NotFound, match="no such recipe"):
        load_recipe(folder / "rows.jsonl" / "recipe.yaml")
    with pytest.raises(RecipeError, match="cannot be read: File name too long"):
        load_recipe(folder / f"{'x' * 300}.yaml")


# ── paths ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_beside_the_recipe_go_before_rows_in_the_working_folder(folder: Path):
    Path("rows.jsonl").write_text("{}")
    Path("other.jsonl").write_text("{}")
    assert read(folder, SHORTEST).data.train == str(folder / "rows.jsonl")
    both = read(folder, "model: m\ndata: {train: [rows.jsonl, other.jsonl], validation: other.jsonl}\n").data
    assert both.train == (str(folder / "rows.jsonl"), str(Path.cwd() / "other.jsonl"))
    assert both.validation == str(Path.cwd() / "other.jsonl")


def test_missing_rows_are_told_with_both_places_and_a_neighbour(folder: Path):
    error = refusal(folder, "model: m\ndata:\n  train: row.jsonl\n")
    assert isinstance(error, NotFound)
    assert (error.line, error.field) == (3, "data.train")
    assert str(folder) in error.found
    assert str(Path.cwd()) in error.found
    assert "rows.jsonl" in error.mend


def test_a_tilde_is_the_home_folder_and_that_of_nobody_is_not_found(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "mine.yaml").write_text("model: m\ndata: {train: ~/rows.jsonl}\n")
    assert load_recipe("~/mine.yaml").data.train == str(folder / "rows.jsonl")
    error = refusal(folder, "model: m\ndata: {train: ~nobody-of-this-name/rows.jsonl}\n")
    assert isinstance(error, NotFound)


def test_a_pattern_and_a_folder_beside_the_recipe_become_absolute(folder: Path):
    (folder / "part [1]").mkdir()
    (folder / "part [1]" / "a.jsonl").write_text("{}")
    assert read(folder, "model: m\ndata: {train: '*.jsonl'}\n").data.train == str(folder / "*.jsonl")
    assert read(folder, "model: m\ndata: {train: 'part [1]'}\n").data.train == str(folder / "part [1]")
    assert isinstance(refusal(folder, "model: m\ndata: {train: '*.csv'}\n"), NotFound)


def test_a_pattern_beside_a_recipe_whose_folder_looks_like_one_still_finds_the_files(folder: Path):
    home = folder / "part [1]"
    home.mkdir()
    (home / "rows.jsonl").write_text('{"a": 1}\n')
    pattern = read(home, "model: m\ndata: {train: 'r*.jsonl'}\n").data.train
    assert [row.values for row in read_rows(pattern, lambda _: None)] == [{"a": 1}]


def test_a_hub_name_is_left_as_it_is(folder: Path):
    assert read(folder, "model: owner/model\ndata: {train: owner/set}\n").data.train == "owner/set"


def test_a_template_file_a_model_folder_and_an_adapter_become_absolute(folder: Path):
    (folder / "chat.jinja").write_text("{{ messages }}")
    (folder / "base").mkdir()
    (folder / "before").mkdir()
    text = "model: ./base\ndata: {train: rows.jsonl, chat_template: chat.jinja}\nmethod: {from: before}\n"
    recipe = read(folder, text)
    assert recipe.data.chat_template == str(folder / "chat.jinja")
    assert recipe.model.name == str(folder / "base")
    assert isinstance(recipe.method, LoRA)
    assert recipe.method.begin_from == str(folder / "before")


def test_every_folder_that_a_method_names_becomes_absolute(folder: Path):
    for name in ("one", "two", "subspace"):
        (folder / name).mkdir()
    text = "model: m\ndata: {train: rows.jsonl}\nmethod: {kind: ipt, stage: subspace, tasks: [one, ./two, three]}\n"
    method = read(folder, text).method
    assert isinstance(method, IPT)
    assert method.tasks == (str(folder / "one"), str(folder / "two"), "three")
    method = read(folder, "model: m\ndata: {train: rows.jsonl}\nmethod: {kind: ipt, decoder: subspace}\n").method
    assert isinstance(method, IPT)
    assert method.decoder == str(folder / "subspace")


def test_a_recipe_that_goes_on_from_an_adapter_is_written_with_what_it_states_of_its_method_alone(folder: Path):
    (folder / "before").mkdir()
    text = "model: m\ndata: {train: rows.jsonl}\nmethod: {from: before, dropout: 0.1}\n"
    recipe = read(folder, text)
    written = yaml.safe_load(dump_recipe(recipe))
    assert written["method"] == {"kind": "lora", "from": str(folder / "before"), "dropout": 0.1}
    assert read(folder, dump_recipe(recipe)) == recipe
    assert yaml.safe_load(dump_recipe(read(folder, text.replace("from: before, ", ""))))["method"]["rank"] == 16


def test_the_recipe_of_a_run_is_read_without_its_rows(folder: Path):
    provenance = {"luthier": "0", "torch": "0", "transformers": "0", "model_sha256": "a", "data_sha256": "b"}
    values = {"model": "m", "data": {"train": "/gone/rows.jsonl"}, "provenance": provenance}
    assert read(folder, json.dumps(values)).data.train == "/gone/rows.jsonl"


# ── the schema ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_schema_lets_a_model_be_its_name_and_closes_every_block():
    schema = json_schema()
    assert {"type": "string"} in schema["properties"]["model"]["anyOf"]
    assert schema["additionalProperties"] is False
    assert all(block["additionalProperties"] is False for block in schema["$defs"].values())
    assert "from" in schema["$defs"]["LoRA"]["properties"]


def test_an_optimizer_may_be_its_name_in_a_recipe_and_in_the_schema(folder: Path):
    recipe = read(folder, SHORTEST + "training: {optimizer: lion}\n")
    assert recipe.training.optimizer == Lion()
    assert read(folder, SHORTEST, "training.optimizer=lion") == recipe
    assert {"type": "string"} in json_schema()["$defs"]["TrainingSettings"]["properties"]["optimizer"]["anyOf"]
    fault = refusal(folder, SHORTEST + "training:\n  optimizer: lionn\n")
    assert (fault.line, fault.field) == (4, "training.optimizer.kind")
    assert "lion" in str(fault)


def test_in_the_schema_a_method_without_its_kind_is_lora_alone():
    """An editor wants exactly one of the methods to fit."""
    schema = json_schema()
    methods = [schema["$defs"][each["$ref"].rpartition("/")[2]] for each in schema["properties"]["method"]["oneOf"]]
    assert len(methods) == len(METHODS)
    assert [method["title"] for method in methods if "kind" not in method.get("required", ())] == ["LoRA"]


def test_an_unknown_field_of_a_source_in_a_list_is_told_with_those_that_there_are(folder: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"no field data\.train\[0\]\.cap.*Fields here are path, task, weight, max_rows"
    ):
        make_recipe({"model": "smollm2-135m", "data": {"train": [{"path": str(folder / "rows.jsonl"), "cap": 2}]}})
