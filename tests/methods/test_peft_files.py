"""LoRA adapters in peft's files: written here and loaded there, written there and loaded here, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models.rows import plain_logprobs, random_rows
from models.tiny import plain_model, tiny_model
from models.tuned import LENGTHS, every_target, logprobs, plain_attention, quiet, randomize
from near import assert_near
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.errors import LuthierError, NotFound, RecipeError
from luthier.methods import LoRA
from luthier.training.flat import FlatTrainables

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# peft warns of what is meant here: a tied head among the targets, Conv1D beside Linear
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but the target module is `torch.nn.Linear`"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unable to fetch remote file"),
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
]


def plain(name: str) -> Any:
    """The tiny model in transformers alone."""
    return plain_model(name, plain_attention(name))


def written(folder: Path, name: str, **settings: Any) -> Tensor:
    """Write a random adapter of a tiny model; return what the model with it says of the usual rows."""
    model = tiny_model(name)
    attachment = LoRA(**settings).attach(model, "default", seed=0)
    randomize(attachment)
    FlatTrainables(attachment.groups, workers=1)  # as the loop leaves them: views of one vector
    folder.mkdir()
    attachment.write(folder, quiet)
    return logprobs(model)


def made_by_peft(folder: Path, name: str, **config: Any) -> Tensor:
    """Save a random adapter with peft; return what peft's model says of the usual rows."""
    with torch.random.fork_rng():
        tuned = get_peft_model(plain(name), LoraConfig(task_type="CAUSAL_LM", **config)).eval()
    for index, parameter in enumerate(p for p in tuned.parameters() if p.requires_grad):
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.1)
    tuned.save_pretrained(folder, save_embedding_layers=config.get("target_modules") == "embedding")
    return plain_logprobs(tuned, random_rows(LENGTHS)).detach()


def test_an_adapter_of_another_base_is_told(tmp_path: Path) -> None:
    written(tmp_path / "a", "llama", rank=2)
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    name = tiny_model("llama").identity.name
    for base, is_told in (("owner/Other-7B", True), (f"owner/{name.upper()}", False), (name, False), (None, False)):
        (tmp_path / "a" / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": base}))
        attachment = LoRA(begin_from=str(tmp_path / "a")).attach(tiny_model("llama"), "default", seed=0)
        assert [str(base) in note and name in note for note in attachment.notes] == [True] * is_told
    assert LoRA(rank=2).attach(tiny_model("llama"), "default", seed=0).notes == ()


# ── ours → peft ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "falcon-new", "gemma", "gpt_neox", "opt", "phi3"])
@pytest.mark.parametrize("targets", ["all-linear", "every-kind"])
def test_peft_computes_the_same_from_a_written_adapter(name: str, targets: str, tmp_path: Path) -> None:
    chosen = "all-linear" if targets == "all-linear" else every_target(tiny_model(name))
    expected = written(tmp_path / "a", name, rank=3, targets=chosen, dropout=0.2)
    loaded = PeftModel.from_pretrained(plain(name), tmp_path / "a")
    assert_near(plain_logprobs(loaded, random_rows(LENGTHS)), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": (1,)},
        {"targets": ("q_proj", "1.mlp.up_proj")},
        {"rslora": True, "alpha": 5},
        {
            "rank_pattern": {"k_proj": 5, "layers.0.mlp.up_proj": 2},
            "alpha_pattern": {"1.self_attn.k_proj": 9, "down_.*": 1},
        },
    ],
)
def test_peft_understands_chosen_layers_patterns_and_rank_stabilised_scales(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    expected = written(tmp_path / "a", "llama", rank=3, **settings)
    loaded = PeftModel.from_pretrained(plain("llama"), tmp_path / "a")
    assert_near(plain_logprobs(loaded, random_rows(LENGTHS)), expected)


def test_target_modules_are_short_names_where_those_say_it_exactly_and_whole_names_where_not(tmp_path: Path) -> None:
    written(tmp_path / "a", "llama", targets=("q_proj", "v_proj"))
    written(tmp_path / "b", "llama", targets=("q_proj",), layers=(1,))
    found = [json.loads((tmp_path / run / CONFIG).read_text())["target_modules"] for run in "ab"]
    assert found == [["q_proj", "v_proj"], ["model.layers.1.self_attn.q_proj"]]


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon-alibi"])
def test_what_is_written_is_read_back_as_the_same_function_of_the_same_settings(name: str, tmp_path: Path) -> None:
    settings = {"rank": 3, "alpha": 5, "rslora": True, "rank_pattern": {"dense|c_fc|q_proj": 2}}
    expected = written(tmp_path / "a", name, targets=every_target(tiny_model(name)), **settings)
    model = tiny_model(name)
    again = LoRA(begin_from=str(tmp_path / "a")).attach(model, "default", seed=9)
    assert_near(logprobs(model), expected, 1e-7)
    (tmp_path / "b").mkdir()
    again.write(tmp_path / "b", quiet)
    assert (tmp_path / "b" / WEIGHTS).read_bytes() == (tmp_path / "a" / WEIGHTS).read_bytes()
    configs = [json.loads((tmp_path / run / CONFIG).read_text()) for run in "ab"]
    assert configs[0] == configs[1]


def test_a_run_folder_stands_for_its_adapter(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    expected = written(tmp_path / "run" / "adapter", "llama", rank=2)
    model = tiny_model("llama")
    LoRA(begin_from=str(tmp_path / "run")).attach(model, "default", seed=0)
    assert_near(logprobs(model), expected, 1e-7)


# ── peft → ours ─────────────────────────────────────────────────────────────────────────────────────────────────────

PEFT_CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"r": 4, "target_modules": "all-linear"}),
    ("llama", {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [1]}),
    ("llama", {"r": 4, "target_modules": ["q_proj", "down_proj"], "exclude_modules": ["layers.0.mlp.down_proj"]}),
    ("llama", {"r": 4, "target_modules": r".*layers\.0.*\.(q|k)_proj"}),
    (
        "llama",
        {
            "r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "embed_tokens", "lm_head"],
            "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 9, "embed_tokens": 7},
        },
    ),
    ("llama", {"r": 4, "target_modules": ["q_proj"], "lora_dropout": 0.1, "init_lora_weights": "gaussian"}),
    ("gpt2", {"r": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ("gpt2", {"r": 4, "target_modules": ["wte", "c_fc"], "fan_in_fan_out": True}),
    ("gpt2", {"r": 4, "target_modules": ["wte", "lm_head"]}),
    ("falcon", {"r": 4, "target_modules": ["query_key_value", "dense"]}),
    ("falcon-new", {"r": 4, "target_modules": ["query_key_value", "word_embeddings"]}),
    ("gemma", {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}),
    ("llama", {"r": 4, "target_modules": ["q_proj"], "target_parameters": ["mlp.up_proj.weight"]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config"), PEFT_CONFIGS)
def test_an_adapter_saved_by_peft_computes_the_same_here_and_again_in_peft(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    expected = made_by_peft(tmp_path / "a", name, **config)
    model = tiny_model(name)
    attachment = LoRA(begin_from=str(tmp_path / "a")).attach(model, "default", seed=0)
    assert_near(logprobs(model), expected)
    (tmp_path / "b").mkdir()
    attachment.write(tmp_path / "b", quiet)
    loaded = PeftModel.from_pretrained(plain(name), tmp_path / "b")
    assert_near(plain_logprobs(loaded, random_rows(LENGTHS)), expected)


def test_config_fields_that_mean_nothing_here_survive_reading_and_writing(tmp_path: Path) -> None:
    made_by_peft(tmp_path / "a", "llama", r=2, target_modules=["q_proj"], revision="v7")
    config = json.loads((tmp_path / "a" / CONFIG).read_text()) | {"invented_later": {"depth": [1, 2]}}
    (tmp_path / "a" / CONFIG).write_text(json.dumps(config))
    (tmp_path / "b").mkdir()
    LoRA(begin_from=str(tmp_path / "a")).attach(tiny_model("llama"), "default", seed=0).write(tmp_path / "b", quiet)
    again = json.loads((tmp_path / "b" / CONFIG).read_text())
    assert again["invented_later"] == {"depth": [1, 2]}
    assert again["revision"] == "v7"
    changed = {key for key in config if again[key] != config[key]}
    assert changed <= {"base_model_name_or_path", "target_modules"}


def test_half_precision_adapters_are_taken_up_in_fp32(tmp_path: Path) -> None:
    made_by_peft(tmp_path / "a", "llama", r=2, target_modules=["q_proj"])
    tensors = {key: tensor.half() for key, tensor in load_file(tmp_path / "a" / WEIGHTS).items()}
    save_file(tensors, tmp_path / "a" / WEIGHTS)
    attachment = LoRA(begin_from=str(tmp_path / "a")).attach(tiny_model("llama"), "default", seed=0)
    for key, parameter in attachment.trainables.items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter.detach(), tensors[f"base_model.model.{key}"].float())


# ── refused ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def refusal_of(folder: Path, name: str = "llama", **settings: Any) -> LuthierError:
    """The error that going on from a folder ends with."""
    with pytest.raises(LuthierError) as refused:
        LoRA(begin_from=str(folder), **settings).attach(tiny_model(name), "default", seed=0)
    assert refused.value.mend
    return refused.value


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("use_dora", {"use_dora": True}),
        ("bias", {"bias": "all"}),
        ("bias", {"bias": "lora_only"}),
        ("lora_bias", {"lora_bias": True}),
        ("modules_to_save", {"modules_to_save": ["lm_head"]}),
        ("trainable_token_indices", {"trainable_token_indices": [3, 4]}),
        ("init_lora_weights", {"init_lora_weights": "pissa"}),
        ("init_lora_weights", {"init_lora_weights": "olora"}),
        ("layer_replication", {"layer_replication": [[0, 2], [1, 2]]}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_plain_lora_does_not_have_is_refused_naming_the_file_and_the_field(
    field: str, config: dict[str, Any], tmp_path: Path
) -> None:
    made_by_peft(tmp_path / "a", "llama", r=2, target_modules=["q_proj"], **config)
    error = refusal_of(tmp_path / "a")
    assert isinstance(error, RecipeError)
    assert error.file == str(tmp_path / "a" / CONFIG)
    assert error.field == field


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A small adapter of the tiny llama on q_proj."""
    written(tmp_path / "adapter_of_llama", "llama", rank=2, targets=("q_proj",))
    return tmp_path / "adapter_of_llama"


def rewrite_config(adapter: Path, **values: Any) -> None:
    """Change fields of the config; None takes one out."""
    config = json.loads((adapter / CONFIG).read_text()) | values
    (adapter / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("r", None),
        ("r", "eight"),
        ("r", 0),
        ("lora_alpha", -1),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", ["q_proj"]),
        ("alpha_pattern", {"(": 3}),
        ("use_rslora", "perhaps"),
    ],
)
def test_a_config_with_impossible_values_is_refused_in_words(field: str, value: object, adapter: Path) -> None:
    rewrite_config(adapter, **{field: value})
    error = refusal_of(adapter)
    assert isinstance(error, RecipeError)
    assert error.file is not None
    assert str(adapter) in error.file


def test_other_kinds_of_adapters_name_their_kind(adapter: Path) -> None:
    rewrite_config(adapter, peft_type="IA3")
    assert refusal_of(adapter).field == "peft_type"
    assert "IA3" in refusal_of(adapter).found


@pytest.mark.parametrize("text", ["{", "[1]", "null", "\xff"])
def test_a_config_that_is_not_a_json_object_is_refused(text: str, adapter: Path) -> None:
    (adapter / CONFIG).write_bytes(text.encode("latin-1"))
    assert refusal_of(adapter).file == str(adapter / CONFIG)


def change_tensors(adapter: Path, change: dict[str, Tensor | None]) -> None:
    """Add, replace or (None) remove tensors of the weights file."""
    tensors: dict[str, Tensor | None] = {**load_file(adapter / WEIGHTS), **change}
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, adapter / WEIGHTS)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({f"{FIRST}.lora_A.weight": None}, "q_proj.lora_A.weight"),
        ({f"{FIRST}.lora_A.weight": torch.zeros(2, 7)}, "(2, 7)"),
        ({f"{FIRST}.lora_B.weight": torch.zeros(32, 9)}, "(32, 9)"),
        ({f"{FIRST}.lora_magnitude_vector": torch.ones(32)}, "lora_magnitude_vector"),
        ({"base_model.model.lm_head.weight": torch.zeros(61, 32)}, "lm_head.weight"),
        ({FIRST.replace("q_proj", "x_proj") + ".lora_A.weight": torch.zeros(2, 32)}, "x_proj"),
        ({FIRST.replace("q_proj", "k_proj") + ".lora_A.weight": torch.zeros(2, 32)}, "k_proj.lora_B.weight"),
        ({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32)}, "model.layers.0.self_attn.q_proj"),
    ],
)
def test_missing_misshapen_and_unknown_tensors_are_refused_by_name(
    change: dict[str, Tensor | None], told: str, adapter: Path
) -> None:
    change_tensors(adapter, change)
    error = refusal_of(adapter)
    assert isinstance(error, RecipeError)
    assert told in error.found
    assert error.file is not None
    assert error.file.startswith(str(adapter))


@pytest.mark.parametrize("other", ["gpt2", "opt", "falcon"])
def test_an_adapter_of_another_model_is_refused(other: str, adapter: Path) -> None:
    error = refusal_of(adapter, other)
    assert isinstance(error, RecipeError)
    assert error.file == str(adapter)


def test_a_model_of_other_widths_is_refused_with_both_shapes(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    change_tensors(adapter, {key: torch.zeros(2, 48) for key in tensors if "lora_A" in key})
    assert "(2, 48)" in refusal_of(adapter).found
    assert "(2, 32)" in refusal_of(adapter).found


def test_a_pickle_is_never_opened(adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x04whatever")
    error = refusal_of(adapter)
    assert isinstance(error, RecipeError)
    assert "pickle" in error.mend
    assert error.file == str(adapter)


def test_a_weights_file_that_was_cut_short_is_refused(adapter: Path) -> None:
    whole = (adapter / WEIGHTS).read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        (adapter / WEIGHTS).write_bytes(whole[:length])
        assert refusal_of(adapter).file == str(adapter / WEIGHTS)


def test_a_folder_without_an_adapter_and_one_of_full_tuning_say_what_they_are(tmp_path: Path, adapter: Path) -> None:
    for missing in (tmp_path / "nowhere", tmp_path):
        error = refusal_of(missing)
        assert isinstance(error, NotFound)
        assert error.field == "method.from"
    (tmp_path / "full" / "model").mkdir(parents=True)
    shutil.copy(adapter / CONFIG, tmp_path / "full" / "model" / "config.json")
    error = refusal_of(tmp_path / "full")
    assert isinstance(error, RecipeError)
    assert str(tmp_path / "full" / "model") in error.mend


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 8),
        ("alpha", 3.0),
        ("rslora", True),
        ("targets", ("k_proj",)),
        ("layers", (0,)),
        ("rank_pattern", {"x": 3}),
    ],
)
def test_a_recipe_that_states_another_shape_than_the_adapter_is_refused_by_field(
    field: str, value: object, adapter: Path
) -> None:
    error = refusal_of(adapter, **{field: value})
    assert error.field in (f"method.{field}", "method.targets" if field == "layers" else None)


def test_a_recipe_that_states_the_same_shape_or_only_how_to_train_is_taken(adapter: Path) -> None:
    model = tiny_model("llama")
    LoRA.model_validate(
        {"from": str(adapter), "rank": 2, "alpha": 4, "targets": ["q_proj"], "dropout": 0.1, "lr_ratio": 4}
    ).attach(model, "default", seed=0)
    bank = model.hf.get_submodule("model.layers.0.self_attn.q_proj")
    assert bank.branch("default").drop == 0.1
