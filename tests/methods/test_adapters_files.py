"""The files of the `adapters` library: its adapters read and written, its function, and what is refused.

The golden files in tests/golden were made by the library itself, in an environment of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.golden_adapters import (
    CASES,
    CONFIG,
    ENCODER_DECODERS,
    GOLDEN,
    METHODS,
    WEIGHTS,
    changed_config,
    changed_tensors,
    copied,
    golden_logits,
    golden_model,
    logits,
)
from models.tiny import tiny_model
from models.tuned import logprobs, quiet, randomize, usual_batch, usual_rows
from near import assert_all_near, assert_apart, assert_near
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.errors import LuthierError, NotFound, RecipeError
from luthier.generation.engine import Request, generate
from luthier.generation.settings import Sampling
from luthier.methods import AdaMix, AdapterMethod, Compacter, Houlsby, Parallel, Pfeiffer, PrefixTuning
from luthier.methods.adamix import AdapterHost
from luthier.models.call import Call, calling
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.training.flat import FlatTrainables

# What a config says of an adapter's beginning, which Luthier has its own of.
BEGINNINGS = {
    "init_weights",
    "init_weights_seed",
    "phm_c_init",
    "phm_init_range",
    "hypercomplex_nonlinearity",
    "dropout",
    "stochastic_depth",
}
FRESH: dict[str, AdapterMethod] = {
    "houlsby": Houlsby(width=4, activation="silu"),
    "houlsby-cross": Houlsby(width=4, activation="silu", sublayers=("attention", "cross-attention", "feedforward")),
    "pfeiffer": Pfeiffer(width=3, layers=(1,)),
    "pfeiffer-in-part": Pfeiffer(width=3, layers=(0, 2)),
    "parallel": Parallel(width=8),
    "compacter": Compacter(width=8, rank=2, activation="gelu"),
    "compacter-plus-plus": Compacter(plus=True, reads_sum=True, width=4, activation="gelu"),
    "prefix": PrefixTuning(num_virtual_tokens=3, takes_positions=False),
    "prefix-network": PrefixTuning(num_virtual_tokens=3, projection=6, takes_positions=False),
}
"""The method that makes a golden adapter's shape anew."""


@pytest.mark.parametrize(("name", "case"), CASES)
def test_an_adapter_that_the_library_saved_computes_here_what_it_does_there(name: str, case: str) -> None:
    model = golden_model(name)
    tokens, expected = golden_logits(GOLDEN / name / case)
    METHODS[case](begin_from=str(GOLDEN / name / case)).attach(model, "default", seed=0)
    assert_near(logits(model, tokens), expected)
    assert_apart(logits(model, tokens, None), expected, 1e-2)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_an_adapter_that_was_read_is_written_as_it_was(name: str, case: str, tmp_path: Path) -> None:
    attachment = METHODS[case](begin_from=str(GOLDEN / name / case)).attach(golden_model(name), "default", seed=0)
    FlatTrainables(attachment.groups, workers=1)  # as the loop leaves them: views of one vector
    attachment.write(tmp_path, quiet)
    before, after = (json.loads((folder / CONFIG).read_text()) for folder in (GOLDEN / name / case, tmp_path))
    assert after.pop("model_name") == f"golden-{name}"
    assert before | {"model_name": None} == after | {"model_name": None}
    tensors, written = (load_file(folder / WEIGHTS) for folder in (GOLDEN / name / case, tmp_path))
    assert set(tensors) == set(written)
    assert all(torch.equal(tensors[key], written[key]) for key in tensors)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_fresh_adapter_of_that_shape_has_the_librarys_keys_and_config(name: str, case: str, tmp_path: Path) -> None:
    """So the library takes what Luthier writes for what it would write itself."""
    model = golden_model(name)
    attachment = FRESH[case].attach(model, "default", seed=0)
    randomize(attachment)
    attachment.write(tmp_path, quiet)
    before, after = (json.loads((folder / CONFIG).read_text()) for folder in (GOLDEN / name / case, tmp_path))
    own = {"name": "luthier", "model_name": f"golden-{name}", "model_class": None}
    assert {**after, **own, "config": None} == {**before, **own, "config": None}
    assert after["name"] == "luthier"
    unsaid = {key: value for key, value in before["config"].items() if key not in after["config"]}
    assert set(after["config"]) <= set(before["config"])
    assert {**before["config"], **after["config"]} == before["config"]
    assert set(unsaid) <= BEGINNINGS | {"shared_gating", "bottleneck_size", "phm_dim", "phm_rank"} | {
        key for key in unsaid if key.startswith(("phm_", "factorized_", "shared_", "learn_", "inv_"))
    }
    shapes, written = (
        {key.replace(".golden.", ".luthier."): tensor.shape for key, tensor in load_file(folder / WEIGHTS).items()}
        for folder in (GOLDEN / name / case, tmp_path)
    )
    assert shapes == written
    again = golden_model(name)
    METHODS[case](begin_from=str(tmp_path)).attach(again, "default", seed=9)
    tokens, _ = golden_logits(GOLDEN / name / case)
    assert_near(logits(again, tokens), logits(model, tokens), 1e-6)


def test_fields_that_luthier_does_not_know_are_kept_inside_and_outside(tmp_path: Path) -> None:
    folder = copied(tmp_path, "llama", "houlsby")
    changed_config(folder, outer={"license": "mine"}, colour="blue", dropout=0.1)
    attachment = Houlsby(begin_from=str(folder)).attach(golden_model("llama"), "default", seed=0)
    (tmp_path / "b").mkdir()
    attachment.write(tmp_path / "b", quiet)
    written = json.loads((tmp_path / "b" / CONFIG).read_text())
    assert written["license"] == "mine"
    assert (written["config"]["colour"], written["config"]["dropout"]) == ("blue", 0.1)


def test_averaged_experts_are_a_houlsby_adapter_of_the_library(tmp_path: Path) -> None:
    model = golden_model("llama")
    attachment = AdaMix(host=AdapterHost(width=4), experts=3).attach(model, "default", seed=0)
    randomize(attachment)
    attachment.write(tmp_path, quiet)
    config = json.loads((tmp_path / CONFIG).read_text())["config"]
    assert (config["mh_adapter"], config["output_adapter"], config["non_linearity"]) == (False, True, "gelu")
    again = golden_model("llama")
    Houlsby(begin_from=str(tmp_path)).attach(again, "default", seed=0)
    tokens, _ = golden_logits(GOLDEN / "llama" / "houlsby")
    assert_near(logits(again, tokens), logits(model, tokens), 1e-6)


@pytest.mark.parametrize("width", [1, 5, 7, 11, 16, 40])
def test_the_reduction_factor_gives_the_width_back(width: int, tmp_path: Path) -> None:
    attachment = Houlsby(width=width).attach(golden_model("llama"), "default", seed=0)
    attachment.write(tmp_path, quiet)
    factor = json.loads((tmp_path / CONFIG).read_text())["config"]["reduction_factor"]
    assert int(16 // factor) == width


@pytest.mark.parametrize(
    ("name", "case", "root"),
    [
        ("gpt2", "compacter", "transformer."),
        ("bart", "compacter", "model."),
        ("t5", "houlsby", "transformer."),
        ("t5", "prefix", "transformer."),
    ],
)
def test_an_adapter_whose_names_lack_the_module_below_the_head_is_read_too(
    name: str, case: str, root: str, tmp_path: Path
) -> None:
    """It was saved from a model without its head, or from a T5 that is no AutoAdapterModel."""
    folder = copied(tmp_path, name, case)
    tensors = load_file(folder / WEIGHTS)
    assert all(key.startswith(root) for key in tensors)
    save_file({key.removeprefix(root): tensor for key, tensor in tensors.items()}, folder / WEIGHTS)
    model = golden_model(name)
    METHODS[case](begin_from=str(folder)).attach(model, "default", seed=0)
    tokens, expected = golden_logits(folder)
    assert_near(logits(model, tokens), expected)


def test_a_compacter_saved_without_what_its_layers_share_is_refused_with_the_way_to_save_it(tmp_path: Path) -> None:
    folder = copied(tmp_path, "t5", "compacter")
    changed_tensors(folder, {}, drop="phm_rule")
    with pytest.raises(RecipeError, match="phm_rule") as caught:
        Compacter(begin_from=str(folder)).attach(golden_model("t5"), "default", seed=0)
    assert "AutoAdapterModel" in caught.value.mend


@pytest.mark.parametrize(("said", "meant"), [("gelu", "gelu_tanh"), ("gelu_orig", "gelu"), ("relu", "relu")])
def test_a_config_without_a_version_means_the_older_activations(said: str, meant: str, tmp_path: Path) -> None:
    folder = copied(tmp_path, "llama", "houlsby")
    changed_config(folder, outer={"version": None}, non_linearity=said)
    attachment = Houlsby(begin_from=str(folder)).attach(golden_model("llama"), "default", seed=0)
    assert attachment.file_settings()["activation"] == meant  # type: ignore[attr-defined]
    attachment.write(folder, quiet)
    again = Houlsby(begin_from=str(folder)).attach(golden_model("llama"), "default", seed=0)
    assert again.file_settings()["activation"] == meant


@pytest.mark.parametrize("name", ["gemma2", "opt", "falcon-new"])
@pytest.mark.parametrize("case", ["houlsby", "pfeiffer", "parallel", "compacter"])
def test_for_architectures_that_the_library_does_not_know_the_form_is_our_own(
    name: str, case: str, tmp_path: Path
) -> None:
    model = tiny_model(name)
    attachment = METHODS[case](width=8).attach(model, "default", seed=0)
    randomize(attachment)
    attachment.write(tmp_path, quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["luthier_adapter.json", "luthier_adapter.safetensors"]
    again = tiny_model(name)
    METHODS[case](begin_from=str(tmp_path)).attach(again, "default", seed=3)
    assert_near(logprobs(again), logprobs(model), 1e-6)


def test_a_recipe_may_state_the_shape_again_but_no_other(tmp_path: Path) -> None:
    golden = str(GOLDEN / "llama" / "pfeiffer")
    Pfeiffer(begin_from=golden, width=3, layers=(1,), activation="relu").attach(golden_model("llama"), "a", seed=0)
    for settings in ({"width": 4}, {"layers": (0, 1)}, {"scale": 2.0}):
        with pytest.raises(RecipeError, match="goes on from") as caught:
            Pfeiffer.model_validate({"from": golden, **settings}).attach(golden_model("llama"), "a", seed=0)
        assert caught.value.field == f"method.{next(iter(settings))}"


WRONG_CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("houlsby", {"ln_before": True}, "ln_before"),
    ("houlsby", {"use_gating": True}, "use_gating"),
    ("houlsby", {"inv_adapter": "nice"}, "inv_adapter"),
    ("houlsby", {"original_ln_after": False}, "original_ln_after"),
    ("houlsby", {"original_ln_before": True}, "original_ln_before"),
    ("houlsby", {"leave_out": [0, "x"]}, "leave_out"),
    ("houlsby", {"phm_layer": True}, "phm_layer"),
    ("houlsby", {"architecture": "lora"}, "architecture"),
    ("houlsby", {"scaling": "learned"}, ""),
    ("houlsby", {"non_linearity": "mish"}, ""),
    ("houlsby", {"cross_adapter": True}, "cross_adapter"),
    ("pfeiffer", {"mh_adapter": True}, "mh_adapter"),
    ("parallel", {"is_parallel": False}, "is_parallel"),
    ("compacter", {"shared_phm_rule": False}, "shared_phm_rule"),
    ("compacter", {"factorized_phm_W": False}, "factorized_phm_W"),
    ("compacter", {"original_ln_before": True}, "reads_sum"),
    ("prefix", {"use_gating": True}, "use_gating"),
    ("prefix", {"leave_out": [1]}, "leave_out"),
    ("prefix", {"prefix_length": 5}, ""),
    ("prefix-network", {"non_linearity": "relu"}, "non_linearity"),
    ("prefix-network", {"flat": True}, ""),
]


@pytest.mark.parametrize(("case", "change", "field"), WRONG_CONFIGS, ids=lambda value: str(value)[:40])
def test_what_the_method_does_not_compute_is_refused_with_the_field(
    case: str, change: dict[str, Any], field: str, tmp_path: Path
) -> None:
    name = "llama-all-heads" if case.startswith("prefix") else "llama"
    folder = copied(tmp_path, name, case)
    changed_config(folder, **change)
    with pytest.raises(RecipeError) as caught:
        METHODS[case](begin_from=str(folder)).attach(golden_model(name), "default", seed=0)
    assert field in (caught.value.field or "") or field in caught.value.found
    assert caught.value.mend
    assert caught.value.file is not None


@pytest.mark.parametrize(
    ("name", "case"), [("llama", "compacter"), ("gpt2", "pfeiffer"), ("mistral", "prefix-network")]
)
@pytest.mark.parametrize("wrong", ["missing", "unexpected", "misshapen", "pickle"])
def test_files_that_are_not_just_the_adapters_tensors_are_refused(
    name: str, case: str, wrong: str, tmp_path: Path
) -> None:
    folder = copied(tmp_path, name, case)
    key = next(key for key in load_file(folder / WEIGHTS) if "W_right" in key or key.endswith(".weight"))
    if wrong == "missing":
        changed_tensors(folder, {}, drop=key)
    elif wrong == "unexpected":
        changed_tensors(folder, {f"{key}.more": torch.zeros(2)})
    elif wrong == "misshapen":
        changed_tensors(folder, {key: torch.zeros(2, 3, 5)})
    else:
        (folder / WEIGHTS).rename(folder / "pytorch_adapter.bin")
    with pytest.raises(RecipeError) as caught:
        METHODS[case](begin_from=str(folder)).attach(golden_model(name), "default", seed=0)
    assert caught.value.mend
    assert str(folder) in (caught.value.file or "")
    if wrong == "pickle":
        assert "use_safetensors=True" in caught.value.mend


def test_bottlenecks_of_several_widths_are_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path, "llama", "houlsby")
    key = next(key for key in load_file(folder / WEIGHTS) if key.endswith("adapter_down.0.bias"))
    changed_tensors(folder, {key: torch.zeros(9)})
    with pytest.raises(RecipeError, match="one width"):
        Houlsby(begin_from=str(folder)).attach(golden_model("llama"), "default", seed=0)


def test_a_prefix_saved_with_every_layers_names_for_it_is_read_if_they_agree(tmp_path: Path) -> None:
    """As the library's pickle has it."""
    folder = copied(tmp_path, "gpt2", "prefix-network")
    own = load_file(folder / WEIGHTS)
    for index in range(2):
        layer = f"transformer.h.{index}.attn.prefix_tuning.pool.prefix_tunings"
        other = {layer + key.partition("prefix_tunings")[2]: tensor.clone() for key, tensor in own.items()}
        changed_tensors(folder, other)
    model = golden_model("gpt2")
    PrefixTuning(begin_from=str(folder)).attach(model, "default", seed=0)
    tokens, expected = golden_logits(folder)
    assert_near(logits(model, tokens), expected)
    changed_tensors(folder, {next(iter(other)): next(iter(other.values())) + 1})
    with pytest.raises(RecipeError, match="of which there is one"):
        PrefixTuning(begin_from=str(folder)).attach(golden_model("gpt2"), "default", seed=0)


@pytest.mark.parametrize("case", ["houlsby", "prefix"])
def test_another_architecture_is_refused_by_its_name(case: str) -> None:
    with pytest.raises(RecipeError, match="'gpt2'") as caught:
        METHODS[case](begin_from=str(GOLDEN / "gpt2" / case)).attach(golden_model("llama-all-heads"), "default", seed=0)
    assert caught.value.field == "model_type"


def test_a_folder_without_an_adapter_or_with_one_of_peft_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"adapter_config\.json .* luthier_adapter\.json"):
        Houlsby(begin_from=str(tmp_path)).attach(golden_model("llama"), "default", seed=0)
    for config, field in (({"peft_type": "LORA"}, "peft_type"), ({"config": None}, "config")):
        (tmp_path / CONFIG).write_text(json.dumps(config))
        with pytest.raises(RecipeError) as caught:
            Houlsby(begin_from=str(tmp_path)).attach(golden_model("llama"), "default", seed=0)
        assert caught.value.field == field


def test_a_model_setting_that_names_such_an_adapter_is_told_its_base(tmp_path: Path) -> None:
    folder = copied(tmp_path, "llama", "houlsby")
    changed_config(folder, outer={"model_name": "some/base"})
    with pytest.raises(LuthierError) as caught:
        load_model(ModelSettings(name=str(folder)), quiet)
    assert "some/base" in caught.value.mend


def test_a_prefix_without_positions_is_only_for_models_that_the_library_has_it_for() -> None:
    for name in ("llama", "mistral", "phi3"):  # fewer key heads, a window, another architecture
        with pytest.raises(RecipeError) as caught:
            PrefixTuning(takes_positions=False).attach(tiny_model(name), "default", seed=0)
        assert caught.value.field == "method.takes_positions"


@pytest.mark.parametrize("flag", ["encoder_prefix", "cross_prefix"])
def test_a_prefix_that_leaves_an_attention_of_an_encoder_decoder_out_is_refused(flag: str, tmp_path: Path) -> None:
    folder = copied(tmp_path, "bart", "prefix")
    changed_config(folder, **{flag: False})
    with pytest.raises(RecipeError, match="every attention") as caught:
        PrefixTuning(begin_from=str(folder)).attach(golden_model("bart"), "default", seed=0)
    assert caught.value.field == flag
    changed_config(folder, **{flag: True})
    changed_tensors(folder, {}, drop=flag)
    with pytest.raises(RecipeError, match=f"{flag} in the file has none"):
        PrefixTuning(begin_from=str(folder)).attach(golden_model("bart"), "default", seed=0)


@pytest.mark.parametrize("name", ["llama-all-heads", "gpt2", *ENCODER_DECODERS])
def test_the_positions_that_a_prefix_takes_change_the_function(name: str) -> None:
    tokens, _ = golden_logits(GOLDEN / name / "prefix")
    found = []
    for takes in (True, False):
        model = golden_model(name)
        method = PrefixTuning(num_virtual_tokens=3, init="random", takes_positions=takes)
        method.attach(model, "default", seed=0)
        found.append(logits(model, tokens))
    assert_apart(*found)


@pytest.mark.parametrize("name", ["llama-all-heads", "gpt2"])
def test_generation_behind_a_prefix_without_positions_is_as_without_a_cache(name: str) -> None:
    model = golden_model(name)
    PrefixTuning(begin_from=str(GOLDEN / name / "prefix")).attach(model, "default", seed=0)
    prompts = [(5, 9, 30, 4), (7,), (11, 20, 3)]
    together = generate(model, [Request(prompt, Sampling(max_new_tokens=5), "default") for prompt in prompts])
    for prompt, done in zip(prompts, together, strict=True):
        row = torch.tensor([[*prompt, *done.tokens]])
        greedy = logits(model, row).argmax(-1)[0, len(prompt) - 1 : -1]
        assert tuple(greedy.tolist()) == done.tokens


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_answer_behind_prefixes_without_positions_is_as_without_a_cache(name: str) -> None:
    model = golden_model(name)
    PrefixTuning(begin_from=str(GOLDEN / name / "prefix")).attach(model, "default", seed=0)
    prompts = [(5, 9, 30, 4), (7,), (11, 20, 3)]
    together = generate(model, [Request(prompt, Sampling(max_new_tokens=5), "default") for prompt in prompts])
    for prompt, done in zip(prompts, together, strict=True):
        row = torch.tensor([[model.answer_start, *done.tokens]])
        greedy = logits(model, row, sources_BS=torch.tensor([prompt])).argmax(-1)[0, :-1]
        assert tuple(greedy.tolist()) == done.tokens


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_in_a_batch_each_row_of_an_encoder_decoder_counts_the_positions_of_its_own_adapter(name: str) -> None:
    model = tiny_model(name)
    PrefixTuning(num_virtual_tokens=3, init="random", takes_positions=False).attach(model, "without", seed=0)
    PrefixTuning(num_virtual_tokens=5, init="random").attach(model, "with", seed=1)
    whose = ("with", "without", None, "without")
    mixed = model.forward(usual_batch(model, whose), whose).logprob_N
    counts = [row.num_learned for row in usual_rows(model)]
    for row, (adapter, part) in enumerate(zip(whose, mixed.split(counts), strict=True)):
        assert_near(part, logprobs(model, adapter).split(counts)[row])


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_recomputed_layers_change_no_gradient_of_a_prefix_without_positions(name: str) -> None:
    found = []
    for recomputes in (False, True):
        model = tiny_model(name)
        method = PrefixTuning(num_virtual_tokens=3, projection=5, takes_positions=False)
        attachment = method.attach(model, "default", seed=0)
        if recomputes:
            model.checkpoint_layers()
        logprob_N = model.forward(usual_batch(model, "default"), "default").logprob_N
        found.append(torch.autograd.grad(logprob_N.sum(), list(attachment.trainables.values())))
    assert_all_near(found[1], found[0], 2e-5)


def test_the_bias_of_a_t5_counts_such_a_prefix_among_the_keys_and_not_among_the_queries() -> None:
    attention = "encoder.block.0.layer.0.SelfAttention"
    plain: Any = golden_model("t5").hf.get_submodule(attention)
    model = golden_model("t5")
    PrefixTuning(begin_from=str(GOLDEN / "t5" / "prefix")).attach(model, "default", seed=0)
    behind: Any = model.hf.get_submodule(attention)
    with calling(Call(None, (), untaken=(0, 3))):
        bias_BHTL: Tensor = behind.compute_bias(6, 6)
    assert_near(bias_BHTL[:1], plain.compute_bias(6, 6))
    assert_near(bias_BHTL[1:, :, 3:], plain.compute_bias(3, 6))
