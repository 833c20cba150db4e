"""Adapters of experts in peft's files, where those of a layer are one; and in our own, where peft cannot have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.beside_peft import CONFIG, WARNINGS, WEIGHTS, read_by_peft, read_here, written_by_peft, written_here
from models.tiny import MIXTURES, tiny_model
from models.tuned import logprobs, randomize
from near import assert_near
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from luthier.errors import RecipeError
from luthier.methods import IA3, DoRA, LoRA, PiSSA
from luthier.methods.adapter import AdapterMethod
from luthier.methods.adapter_files import OwnForm

pytestmark = [
    *WARNINGS,
    pytest.mark.filterwarnings("ignore:The following .* keys did not match"),  # peft looks among the modules alone
]
OWN = OwnForm.CONFIG
MIXTURE = "model.layers.1.mlp.experts"


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("method", [LoRA(rank=3, alpha=5, dropout=0.2), PiSSA(rank=2)], ids=["lora", "pissa"])
def test_peft_computes_the_same_from_a_written_adapter_of_all_linear_layers(
    method: AdapterMethod, name: str, tmp_path: Path
) -> None:
    expected = written_here(method, name, tmp_path)
    assert_near(read_by_peft(tmp_path, name), expected)
    assert_near(read_here(type(method) if method.kind == "lora" else LoRA, tmp_path, name), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"targets": ("gate_up_proj",)},
        {"targets": ("down_proj",), "layers": (1,)},
        {"targets": ("q_proj", "experts.0.down_proj", "experts.1.down_proj", "experts.2.down_proj"), "layers": (0,)},
        {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {r"experts\.\d+\.gate_up_proj": 9}, "rslora": True},
    ],
)
def test_peft_computes_the_same_from_adapters_of_some_layers_and_of_unlike_ranks(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    method = LoRA(rank=3, **settings)
    expected = written_here(method, "mixtral", tmp_path / "a")
    assert_near(read_by_peft(tmp_path / "a", "mixtral"), expected)
    model = tiny_model("mixtral")
    again = LoRA(begin_from=str(tmp_path / "a")).attach(model, "default", seed=9)
    assert_near(logprobs(model), expected, 1e-7)
    (tmp_path / "b").mkdir()
    again.write(tmp_path / "b", print)
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("name", MIXTURES)
def test_an_adapter_saved_by_peft_computes_the_same_here(name: str, tmp_path: Path) -> None:
    config = LoraConfig(
        r=3, lora_alpha=4, target_modules=["q_proj", "o_proj"], rank_pattern={"experts.down_proj": 2},
        target_parameters=["mlp.experts.down_proj", "mlp.experts.gate_up_proj"], alpha_pattern={"experts.gate_up_proj": 7},
    )  # fmt: skip
    expected = written_by_peft(config, name, tmp_path)
    assert_near(read_here(LoRA, tmp_path, name), expected)


def test_what_peft_has_of_an_expert_is_its_own_rows_of_a_and_every_so_many_columns_of_b(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    attachment = LoRA(rank=2).attach(model, "default", seed=0)
    randomize(attachment)
    attachment.write(tmp_path, print)
    whole, own = load_file(tmp_path / WEIGHTS), attachment.file_tensors()
    for projection, place in (("gate_up_proj", f"{MIXTURE}.base_layer"), ("down_proj", MIXTURE)):
        a, b = (whole[f"base_model.model.{place}.lora_{side}.weight"] for side in "AB")
        for expert in range(3):
            assert torch.equal(a[2 * expert : 2 * expert + 2], own[f"{MIXTURE}.{expert}.{projection}.lora_A.weight"])
            assert torch.equal(b[:, expert::3], own[f"{MIXTURE}.{expert}.{projection}.lora_B.weight"])
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["target_parameters"] == ["experts.gate_up_proj", "experts.down_proj"]
    assert config["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (DoRA(rank=2), "peft has no DoRA of the experts of model.layers.0.mlp.experts"),
        (IA3(), "peft has no (IA)³ of the experts"),
        (LoRA(targets=("q_proj", "experts.1.down_proj")), "only some of the experts of model.layers.0.mlp.experts.down_proj"),
        (LoRA(rank_pattern={"experts.1.down_proj": 2}), "adapters of different ranks or strengths"),
        (LoRA(alpha_pattern={"experts.1.down_proj": 2}), "adapters of different ranks or strengths"),
    ],
    ids=["dora", "ia3", "one-expert", "ranks", "strengths"],
)  # fmt: skip
def test_what_peft_cannot_have_is_told_and_written_in_our_own_form(
    method: AdapterMethod, reason: str, tmp_path: Path
) -> None:
    model = tiny_model("mixtral")
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment)
    told: list[str] = []
    attachment.write(tmp_path, told.append)
    assert [reason in sentence for sentence in told] == [True]
    assert (tmp_path / OWN).is_file()
    assert not (tmp_path / CONFIG).exists()
    fresh = tiny_model("mixtral")
    method.model_validate({"kind": method.kind, "from": str(tmp_path)}).attach(fresh, "default", seed=9)
    assert_near(logprobs(fresh), logprobs(model), 1e-7)


def test_without_experts_a_mixtures_adapter_is_peft_s_whatever_the_method(tmp_path: Path) -> None:
    told: list[str] = []
    attachment = DoRA(rank=2, targets=("q_proj",)).attach(tiny_model("mixtral"), "default", seed=0)
    attachment.write(tmp_path, told.append)
    assert told == []
    assert json.loads((tmp_path / CONFIG).read_text())["target_modules"] == ["q_proj"]


def test_an_adapter_of_another_kind_in_our_own_form_is_refused_with_its_kind(tmp_path: Path) -> None:
    written_here(DoRA(rank=2), "mixtral", tmp_path)
    with pytest.raises(RecipeError, match=r"'DoRA'.*'plain LoRA' in format 1 was expected"):
        read_here(LoRA, tmp_path, "mixtral")


@pytest.mark.parametrize("fault", ["rank", "experts"])
def test_a_file_that_holds_no_whole_experts_or_too_few_is_refused(fault: str, tmp_path: Path) -> None:
    written_here(LoRA(rank=2), "mixtral", tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = f"base_model.model.{MIXTURE}.lora_A.weight"
    tensors[name] = tensors[name][: 5 if fault == "rank" else 4].clone()
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(RecipeError) as refused:
        read_here(LoRA, tmp_path, "mixtral")
    expected = {
        "rank": "no whole number of experts of rank 2",
        "experts": "lacks model.layers.1.mlp.experts.2.down_proj",
    }
    assert expected[fault] in refused.value.found
