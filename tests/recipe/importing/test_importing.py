"""Recipes of other tools: what each setting becomes, and that none is dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.cli.main import main
from luthier.errors import RecipeError
from luthier.recipe import Recipe, load_recipe, make_recipe
from luthier.recipe.importing import Imported, import_recipe

LLAMA_FACTORY = """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
lora_rank: 16
quantization_bit: 4
dataset: identity,support
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
val_size: 0.1
deepspeed: examples/deepspeed/ds_z3_config.json
"""

AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
load_in_4bit: true
adapter: qlora
datasets:
  - path: rows.jsonl
    ds_type: json
    type: alpaca
val_set_size: 0.05
output_dir: ./outputs/out
sequence_len: 1024
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 1
optimizer: paged_adamw_8bit
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
gradient_checkpointing: true
warmup_steps: 10
weight_decay: 0.01
early_stopping_patience: 3
wandb_project: mine
special_tokens:
  pad_token: "<|end_of_text|>"
"""

TORCHTUNE = """
output_dir: /tmp/torchtune/lora
model:
  _component_: torchtune.models.llama3_2.qlora_llama3_2_1b
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  lora_rank: 64
  lora_alpha: 128
  lora_dropout: 0.0
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  path: /models/llama/original/tokenizer.model
  max_seq_len: 1500
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /models/llama
  checkpoint_files: [model.safetensors]
  output_dir: ${output_dir}
  model_type: LLAMA3_2
dataset:
  _component_: torchtune.datasets.alpaca_cleaned_dataset
  packed: False
seed: 7
shuffle: True
batch_size: 4
gradient_accumulation_steps: 8
optimizer:
  _component_: torch.optim.AdamW
  fused: True
  weight_decay: 0.01
  lr: 3e-4
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
loss:
  _component_: torchtune.modules.loss.CEWithChunkedOutputLoss
epochs: 1
clip_grad_norm: null
compile: False
metric_logger:
  _component_: torchtune.training.metric_logging.DiskLogger
  log_dir: ${output_dir}/logs
enable_activation_checkpointing: True
dtype: bf16
custom_sharded_layers: ['tok_embeddings']
"""

JOB = {
    "object": "fine_tuning.job", "id": "ftjob-abc", "model": "gpt-4.1-mini-2025-04-14", "training_file": "file-abc123",
    "validation_file": None, "status": "succeeded", "seed": 42, "suffix": "tickets",
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 1.8}}},
    "integrations": [], "metadata": None,
}  # fmt: skip


def imported(folder: Path, text: str, data: str | None = None) -> tuple[Imported, Recipe]:
    """What a file becomes, and the recipe that its text is, read back."""
    path = folder / "theirs.yaml"
    path.write_text(text)
    found = import_recipe(path, data)
    for name in ("rows.jsonl", "identity.jsonl", "support.jsonl", "file-abc123"):
        (folder / name).write_text("{}")
    (folder / "ours.yaml").write_text(found.as_yaml(path.name))
    return found, load_recipe(folder / "ours.yaml")


def lost(found: Imported) -> set[str]:
    return {key for key, _, _ in found.lost}


def test_a_recipe_of_llama_factory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "support.json").write_text("[]")
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"support": {"file_name": "support.json"}}))
    found, recipe = imported(tmp_path, LLAMA_FACTORY)
    assert recipe.model.name == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert recipe.model.dtype == "bf16"
    assert recipe.method.model_dump()["rank"] == 16
    assert recipe.method.model_dump()["alpha"] == 32
    assert recipe.quantization is not None
    assert (recipe.quantization.kind, recipe.quantization.double) == ("nf4", True)
    assert recipe.training.rows_per_step == 8
    assert recipe.training.peak_lr == 1e-4
    assert (recipe.training.schedule.kind, recipe.training.schedule.warmup_fraction) == ("cosine", 0.1)
    assert (recipe.data.max_length, recipe.data.too_long, recipe.data.validation_fraction) == (2048, "truncate", 0.1)
    assert recipe.data.max_rows == 1000
    assert [Path(name).name for name in recipe.data.train] == ["identity.jsonl", "support.json"]
    assert recipe.seed == 42
    assert lost(found) == {"template", "deepspeed", "dataset"}


def test_a_recipe_of_axolotl(tmp_path: Path) -> None:
    found, recipe = imported(tmp_path, AXOLOTL)
    assert recipe.model.name == "NousResearch/Llama-3.2-1B"
    method = recipe.method.model_dump()
    assert (method["kind"], method["rank"], method["alpha"], method["dropout"]) == ("lora", 32, 16, 0.05)
    assert method["targets"] == ("q_proj", "v_proj")
    assert recipe.quantization is not None
    assert recipe.quantization.kind == "nf4"
    assert (recipe.data.format, recipe.data.max_length) == ("alpaca", 1024)
    assert recipe.training.rows_per_step == 8
    assert recipe.training.peak_lr == 2e-4
    assert recipe.training.optimizer.kind == "paged-adamw-8bit"
    assert recipe.training.schedule.warmup_steps == 10
    assert recipe.training.early_stopping is not None
    assert recipe.training.early_stopping.patience == 3
    assert recipe.training.gradient_checkpointing
    assert recipe.training.trackers == ("wandb",)
    assert lost(found) == {"special_tokens", "wandb_project"}


def test_a_recipe_of_torchtune(tmp_path: Path) -> None:
    found, recipe = imported(tmp_path, TORCHTUNE)
    assert recipe.model.name == "/models/llama"
    method = recipe.method.model_dump()
    assert (method["rank"], method["alpha"]) == (64, 128)
    assert method["targets"] == ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert recipe.quantization is not None
    assert recipe.data.train == "yahma/alpaca-cleaned"
    assert (recipe.data.max_length, recipe.training.tokens_per_micro_batch) == (1500, 1500)
    assert (recipe.training.rows_per_step, recipe.training.peak_lr) == (32, 3e-4)
    assert recipe.training.clip_norm is None
    assert recipe.training.schedule.warmup_steps == 100
    assert (recipe.seed, recipe.training.epochs) == (7, 1)
    assert lost(found) == {"custom_sharded_layers"}


def test_a_fine_tuning_job_of_openai(tmp_path: Path) -> None:
    found, recipe = imported(tmp_path, json.dumps(JOB), data="rows.jsonl")
    assert recipe.model.name == "smollm2-135m"
    assert recipe.training.epochs == 2
    assert recipe.training.peak_lr == pytest.approx(1.8 * recipe.method.default_lr)
    assert recipe.seed == 42
    assert Path(str(recipe.data.train)).name == "rows.jsonl"
    assert lost(found) == {"model"}
    assert lost(imported(tmp_path, json.dumps(JOB))[0]) == {"model", "training_file"}


def leaves(values: Mapping[str, Any], before: str = "") -> set[str]:
    """The paths of all settings that say something."""
    found: set[str] = set()
    for key, value in values.items():
        if isinstance(value, dict):
            found |= leaves(value, f"{before}{key}.")
        elif value not in (None, "", []):
            found.add(f"{before}{key}")
    return found


@pytest.mark.parametrize(
    "text",
    [LLAMA_FACTORY, AXOLOTL, TORCHTUNE, json.dumps(JOB)],
    ids=["llama-factory", "axolotl", "torchtune", "openai"],
)
def test_a_setting_that_nobody_knows_is_named_wherever_it_stands(text: str, tmp_path: Path) -> None:
    values = yaml.safe_load(text)
    values["frobnication"] = 3
    for block in ("model", "dataset", "optimizer"):
        if isinstance(values.get(block), dict):
            values[block]["frobnication"] = 4
    found, _ = imported(tmp_path, yaml.safe_dump(values))
    named = {key for key in lost(found) if key.endswith("frobnication")}
    assert named == {path for path in leaves(values) if path.endswith("frobnication")}


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"stage": "pt"}, {"objective": {"kind": "clm"}}),
        ({"finetuning_type": "full", "quantization_bit": None}, {"method": {"kind": "full"}}),
        (
            {"finetuning_type": "freeze", "freeze_trainable_layers": 3, "quantization_bit": None},
            {"method": {"kind": "top-layers", "num_layers": 3}},
        ),
        ({"use_dora": True}, {"method": {"kind": "dora"}}),
        ({"optim": "adafactor"}, {"training": {"optimizer": {"kind": "adafactor"}}}),
        ({"optim": "unheard_of"}, {"training": {"optimizer": {"kind": "adamw"}}}),
        ({"lr_scheduler_type": "constant_with_warmup"}, {"training": {"schedule": {"kind": "constant"}}}),
        ({"neftune_noise_alpha": 5}, {"objective": {"noise": 5}}),
        ({"train_on_prompt": True}, {"data": {"learn": "all"}}),
        ({"mask_history": True}, {"data": {"learn": "last_answer"}}),
        ({"quantization_bit": 8}, {"quantization": {"kind": "int8"}}),
    ],
)
def test_settings_of_llama_factory_one_by_one(extra: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    values = {key: value for key, value in {**yaml.safe_load(LLAMA_FACTORY), **extra}.items() if value is not None}
    found, _ = imported(tmp_path, yaml.safe_dump(values), data="rows.jsonl")

    def holds(whole: Any, part: Any) -> bool:
        return all(holds(whole[key], value) for key, value in part.items()) if isinstance(part, dict) else whole == part

    assert holds(found.recipe, expected)


@pytest.mark.parametrize(
    ("text", "extra", "objective"),
    [
        (AXOLOTL, {"rl": "dpo", "rl_beta": 0.3}, {"kind": "dpo", "beta": 0.3}),
        (AXOLOTL, {"rl": "ipo", "dpo_beta": 0.3}, {"kind": "dpo", "loss": "ipo", "beta": 0.3}),
        (AXOLOTL, {"rl": "simpo", "rl_beta": 2.0, "simpo_gamma": 1.0}, {"kind": "simpo", "beta": 2.0, "gamma": 1.0}),
        (AXOLOTL, {"rl": "orpo", "orpo_alpha": 0.2}, {"kind": "orpo", "beta": 0.2}),
        (AXOLOTL, {"rl": "kto", "kto_desirable_weight": 1.5}, {"kind": "kto", "desirable_weight": 1.5}),
        (AXOLOTL, {"neftune_noise_alpha": 5}, {"kind": "sft", "noise": 5}),
        (LLAMA_FACTORY, {"stage": "dpo"}, {"kind": "dpo", "beta": 0.1}),
        (LLAMA_FACTORY, {"stage": "dpo", "pref_loss": "ipo"}, {"kind": "dpo", "loss": "ipo", "beta": 0.1}),
        (LLAMA_FACTORY, {"stage": "dpo", "pref_loss": "hinge"}, {"kind": "dpo", "loss": "hinge", "beta": 0.1}),
        (LLAMA_FACTORY, {"stage": "dpo", "pref_loss": "orpo"}, {"kind": "orpo", "learn_prompt": False, "beta": 0.1}),
        (LLAMA_FACTORY, {"stage": "dpo", "pref_loss": "simpo"}, {"kind": "simpo", "beta": 0.1, "gamma": 0.5}),
    ],
    ids=str,
)
def test_losses_over_preferences_come_with_their_numbers(
    text: str, extra: dict[str, Any], objective: dict[str, Any], tmp_path: Path
) -> None:
    found, recipe = imported(tmp_path, yaml.safe_dump({**yaml.safe_load(text), **extra}), data="rows.jsonl")
    assert found.recipe["objective"] == objective
    assert recipe.objective.kind == objective["kind"]
    assert not lost(found) & extra.keys()


@pytest.mark.parametrize(
    ("text", "extra", "named", "objective"),
    [
        (LLAMA_FACTORY, {"stage": "dpo", "pref_loss": "kto_pair"}, {"pref_loss"}, "dpo"),
        (LLAMA_FACTORY, {"stage": "rm", "neftune_noise_alpha": 5}, {"neftune_noise_alpha"}, "reward"),
        (AXOLOTL, {"rl": "dpo", "neftune_noise_alpha": 5}, {"neftune_noise_alpha"}, "dpo"),
        (AXOLOTL, {"rl": "unheard_of"}, {"rl"}, "sft"),
        (AXOLOTL, {"optimizer": "sgd", "adam_beta1": 0.8}, {"adam_beta1"}, "sft"),
        (AXOLOTL, {"optimizer": "adafactor", "adam_epsilon": 1e-6}, {"adam_epsilon"}, "sft"),
        (LLAMA_FACTORY, {"report_to": "wandb,swanlab"}, {"report_to"}, "sft"),
    ],
    ids=str,
)
def test_a_number_that_the_recipes_own_choice_has_no_place_for_is_lost(
    text: str, extra: dict[str, Any], named: set[str], objective: str, tmp_path: Path
) -> None:
    found, recipe = imported(tmp_path, yaml.safe_dump({**yaml.safe_load(text), **extra}), data="rows.jsonl")
    assert named <= lost(found)
    assert recipe.objective.kind == objective


def test_sets_of_axolotl_in_forms_of_their_own_become_a_mixture(tmp_path: Path) -> None:
    sets = [
        {"path": "rows.jsonl", "type": "alpaca"},
        {"path": "json", "data_files": ["support.jsonl"], "type": "chat_template", "split": "train"},
        {"path": "identity.jsonl", "type": "unheard_of"},
    ]
    found, recipe = imported(tmp_path, yaml.safe_dump({**yaml.safe_load(AXOLOTL), "datasets": sets}))
    assert [(Path(str(each.path[0])).name, each.format) for each in recipe.data.train] == [
        ("rows.jsonl", "alpaca"), ("support.jsonl", "chat"), ("identity.jsonl", None),
    ]  # fmt: skip
    assert ("datasets.type", "unheard_of") in [(key, value) for key, value, _ in found.lost]


def test_what_is_said_of_a_set_in_dataset_info_is_lost_unless_it_goes_without_saying(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.json").write_text("[]")
    entry = {
        "file_name": "rows.json", "formatting": "alpaca", "ranking": True, "subset": "easy", "split": "validation", "num_samples": 9,
        "columns": {"prompt": "instruction", "query": "question"},
    }  # fmt: skip
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"support": entry}))
    found, _ = imported(tmp_path, yaml.safe_dump({**yaml.safe_load(LLAMA_FACTORY), "dataset": "support"}))
    assert {key for key in lost(found) if key.startswith("dataset.")} == {
        "dataset.subset", "dataset.split", "dataset.num_samples", "dataset.columns.query",
    }  # fmt: skip


def test_what_torchs_optimizer_does_unasked_is_written_down_and_no_row_is_cut_that_was_not(tmp_path: Path) -> None:
    values = yaml.safe_load(TORCHTUNE)
    del values["optimizer"]["weight_decay"]
    values["tokenizer"]["max_seq_len"] = None
    found, recipe = imported(tmp_path, yaml.safe_dump(values))
    assert recipe.training.optimizer.weight_decay == 0.01
    assert recipe.data.too_long != "truncate"
    assert "tokenizer.max_seq_len" in lost(found)
    values["optimizer"] = {"_component_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}
    assert imported(tmp_path, yaml.safe_dump(values))[1].training.optimizer.model_dump() == {
        "kind": "sgd", "weight_decay": 0.0, "momentum": 0.9, "nesterov": False,
    }  # fmt: skip


def test_a_config_of_torchtune_says_its_parts_of_data_losses_and_backward_steps(tmp_path: Path) -> None:
    values = yaml.safe_load(TORCHTUNE)
    values["model"] = {"_component_": "torchtune.models.llama3_2.llama3_2_1b"}
    values["dataset"] = [{"source": "x/a", "split": "train[:1000]"}, {"source": "x/b", "split": "train"}]
    values |= {"optimizer_in_bwd": True, "loss": {"_component_": "torchtune.rlhf.loss.DPOLoss", "beta": 0.2}}
    found, recipe = imported(tmp_path, yaml.safe_dump(values))
    assert (recipe.data.train, recipe.data.max_rows) == (("x/a", "x/b"), None)
    assert "dataset.split" in lost(found)
    assert recipe.training.update_in_backward
    assert found.recipe["objective"] == {"kind": "dpo", "beta": 0.2}
    values["dataset"] = values["dataset"][0]
    assert imported(tmp_path, yaml.safe_dump(values))[1].data.max_rows == 1000
    values["clip_grad_norm"] = 1.0
    found, recipe = imported(tmp_path, yaml.safe_dump(values))
    assert not recipe.training.update_in_backward
    assert "optimizer_in_bwd" in lost(found)


GRADER = {"type": "string_check", "name": "same", "operation": "eq", "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}  # fmt: skip


def test_a_reinforcement_job_brings_its_grader_and_is_no_such_job_without_one(tmp_path: Path) -> None:
    method = {"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": {"n_epochs": 2, "reasoning_effort": "low"}}}  # fmt: skip
    found, recipe = imported(tmp_path, json.dumps({**JOB, "method": method}), data="rows.jsonl")
    assert recipe.objective.kind == "grpo"
    assert found.recipe["objective"]["rewards"] == [{"grader": GRADER}]
    assert recipe.training.epochs == 2
    assert lost(found) == {"model", "method.reinforcement.hyperparameters.reasoning_effort"}
    method["reinforcement"]["grader"] = {"type": "unheard_of"}
    found, recipe = imported(tmp_path, json.dumps({**JOB, "method": method}), data="rows.jsonl")
    assert recipe.objective.kind == "sft"
    assert {"method", "method.reinforcement.grader.type"} <= lost(found)


SCORE = {"type": "score_model", "name": "good", "model": "gpt-4.1-mini", "range": [0, 1], "input": [{"role": "user", "content": "{{ sample.output_text }}"}]}  # fmt: skip
LABEL = {"type": "label_model", "name": "kind", "model": "o4-mini", "labels": ["kind", "rude"], "passing_labels": ["kind"], "input": [{"role": "user", "content": "{{ sample.output_text }}"}]}  # fmt: skip
BOTH = {"type": "multi", "name": "both", "graders": {"good": SCORE, "kind": LABEL, "same": GRADER}, "calculate_output": "good + kind + same"}  # fmt: skip


@pytest.mark.parametrize(
    ("grader", "models"),
    [
        (SCORE, {"model": "gpt-4.1-mini"}),
        (LABEL, {"model": "o4-mini"}),
        (BOTH, {"graders.good.model": "gpt-4.1-mini", "graders.kind.model": "o4-mini"}),
    ],
    ids=["score", "label", "multi"],
)
def test_a_grader_that_asks_a_model_is_brought_with_where_it_is_asked(
    grader: dict[str, Any], models: dict[str, str], tmp_path: Path
) -> None:
    method = {"type": "reinforcement", "reinforcement": {"grader": grader}}
    found, recipe = imported(tmp_path, json.dumps({**JOB, "method": method}), data="rows.jsonl")
    assert recipe.objective.kind == "grpo"
    assert found.recipe["objective"]["rewards"] == [{"grader": grader, "judge": {"url": "https://api.openai.com/v1"}}]
    told = {f"method.reinforcement.grader.{key}": model for key, model in models.items()}
    assert {key: value for key, value, _ in found.lost if key != "model"} == told
    assert all("judge.key_file" in why and "judge.url" in why for key, _, why in found.lost if key in told)


def test_a_grader_that_names_no_model_to_ask_has_no_equivalent(tmp_path: Path) -> None:
    grader = {key: value for key, value in SCORE.items() if key != "model"}
    method = {"type": "reinforcement", "reinforcement": {"grader": grader}}
    found, recipe = imported(tmp_path, json.dumps({**JOB, "method": method}), data="rows.jsonl")
    assert recipe.objective.kind == "sft"
    assert {why for key, _, why in found.lost if key.startswith("method.reinforcement.grader")} == {
        "names no model, and neither does the grader; set judge.model to its name there."
    }


def test_where_a_tracker_keeps_what_it_is_told_is_lost_and_the_tracker_is_not(tmp_path: Path) -> None:
    integrations = [{"type": "wandb", "wandb": {"project": "mine", "tags": ["a"]}}, {"type": "other"}]
    found, recipe = imported(tmp_path, json.dumps({**JOB, "integrations": integrations}), data="rows.jsonl")
    assert recipe.training.trackers == ("wandb",)
    assert lost(found) == {"model", "integrations.wandb.project", "integrations.wandb.tags", "integrations"}
    both = {"use_wandb": True, "mlflow_tracking_uri": "http://localhost", "use_tensorboard": True}
    _, recipe = imported(tmp_path, yaml.safe_dump({**yaml.safe_load(AXOLOTL), **both}))
    assert recipe.training.trackers == ("wandb", "mlflow", "tensorboard")


def test_the_same_recipe_comes_out_whatever_the_order_of_the_settings(tmp_path: Path) -> None:
    values = yaml.safe_load(AXOLOTL)
    straight, _ = imported(tmp_path, yaml.safe_dump(values, sort_keys=False))
    turned, _ = imported(tmp_path, yaml.safe_dump(dict(reversed(values.items())), sort_keys=False))
    assert straight.recipe == turned.recipe
    assert make_recipe({**straight.recipe, "data": {"train": str(tmp_path / "rows.jsonl")}}).method.kind == "lora"


def test_a_file_of_no_known_tool_is_refused(tmp_path: Path) -> None:
    for text in ("a: 1", "[1, 2]", "model: smollm2-135m\ndata: {train: x}"):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(RecipeError, match="no recipe of a tool"):
            import_recipe(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("base_model: a\nadapter: lora\n")
    with pytest.raises(RecipeError, match="names no training rows"):
        import_recipe(tmp_path / "x.yaml")


def test_the_command_writes_the_recipe_once_and_says_what_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "job.json").write_text(json.dumps(JOB))
    words = ["import", str(tmp_path / "job.json"), "--data", "rows.jsonl"]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["tool"] == "OpenAI fine-tuning job"
    assert [each["theirs"] for each in document["lost"]] == ["model"]
    text = (tmp_path / "job.luthier.yaml").read_text()
    assert text.startswith("# From job.json")
    assert "gpt-4.1-mini" in text
    assert load_recipe(tmp_path / "job.luthier.yaml").training.epochs == 2
    assert main(words) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
