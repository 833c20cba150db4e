"""P-tuning: what its networks compute, that they are kept beside peft's file, and what a file without one is good for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from methods.soft_prompt_files import PEFT_WARNINGS, by_peft, made_by_peft, written
from models.tiny import plain_model, tiny_model
from models.tuned import logprobs, plain_attention, quiet, randomize
from near import assert_near
from peft import PeftModel, PromptEncoderConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods import PromptTuning, PTuning
from luthier.methods.p_tuning import PromptNetwork
from luthier.methods.prompt_files import ENCODER

pytestmark = PEFT_WARNINGS
WEIGHTS = "adapter_model.safetensors"
SETTINGS = ({"hidden": 6}, {"encoder": "LSTM", "hidden": 5, "lstm_layers": 2}, {"encoder": "LSTM", "lstm_layers": 1})


@pytest.mark.parametrize(
    ("settings", "count"),
    [({"hidden": 16}, 1504), ({"encoder": "LSTM", "hidden": 16}, 15072), ({}, 5 * 32 + 3 * (32 * 32 + 32))],
)
def test_the_count_is_the_formulas(settings: dict[str, object], count: int) -> None:
    method = PTuning.model_validate({"num_virtual_tokens": 5, **settings})
    assert method.attach(tiny_model("llama"), "default", seed=0).num_trainable == count


def network(lstm_layers: int | None) -> PromptNetwork:
    """A random network of three tokens, width 4 and inner width 6."""
    return PromptNetwork(3, 4, 6, lstm_layers, torch.Generator().manual_seed(0))


def test_the_mlp_is_three_linear_layers_with_relu_between_them() -> None:
    made = network(None)
    w = dict(made.mlp.named_parameters())
    inner = F.relu(made.embedding @ w["0.weight"].t() + w["0.bias"])
    inner = F.relu(inner @ w["2.weight"].t() + w["2.bias"])
    assert_near(made(), inner @ w["4.weight"].t() + w["4.bias"], 1e-6)


def one_direction(x: list[Tensor], w: dict[str, Tensor], ending: str) -> list[Tensor]:
    """A layer of an LSTM over rows in the order given, gates in the order i, f, g, o."""
    h = c = torch.zeros(w["weight_hh" + ending].shape[1])
    states = []
    for row in x:
        gates = (
            w["weight_ih" + ending] @ row + w["bias_ih" + ending] + w["weight_hh" + ending] @ h + w["bias_hh" + ending]
        )
        i, f, g, o = gates.chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return states


def test_the_lstm_reads_the_virtual_tokens_in_both_directions_before_two_linear_layers() -> None:
    made = network(1)
    assert made.lstm is not None
    w = dict(made.lstm.named_parameters())
    rows = list(made.embedding)
    forth, back = one_direction(rows, w, "_l0"), one_direction(rows[::-1], w, "_l0_reverse")[::-1]
    read = torch.stack([torch.cat(pair) for pair in zip(forth, back, strict=True)])
    m = dict(made.mlp.named_parameters())
    expected = F.relu(read @ m["0.weight"].t() + m["0.bias"]) @ m["2.weight"].t() + m["2.bias"]
    assert_near(made(), expected, 1e-5)


@pytest.mark.parametrize("lstm_layers", [None, 2])
def test_starts_are_torchs_own_but_leave_its_generator_alone(lstm_layers: int | None) -> None:
    before = torch.get_rng_state()
    first, again = network(lstm_layers), network(lstm_layers)
    assert torch.equal(torch.get_rng_state(), before)
    for (name, one), other in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name
        if name == "embedding":
            continue
        fan_in = 6 if "lstm" in name else dict(first.named_parameters())[name.replace("bias", "weight")].shape[1]
        bound = fan_in**-0.5
        assert 0.4 * bound < float(one.detach().abs().max()) <= bound, name


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_peft_computes_the_same_from_what_the_network_came_to(
    name: str, settings: dict[str, object], tmp_path: Path
) -> None:
    expected = written(tmp_path, name, PTuning.model_validate({"num_virtual_tokens": 3, **settings}))
    loaded = PeftModel.from_pretrained(plain_model(name, plain_attention(name)), tmp_path / "a")
    assert_near(by_peft(loaded), expected)
    assert set(load_file(tmp_path / "a" / WEIGHTS)) == {"prompt_embeddings"}


@pytest.mark.parametrize("settings", SETTINGS)
def test_training_goes_on_with_the_network_that_was_kept(settings: dict[str, object], tmp_path: Path) -> None:
    method = PTuning.model_validate({"num_virtual_tokens": 3, **settings})
    expected = written(tmp_path, "llama", method)
    model = tiny_model("llama")
    again = PTuning(begin_from=str(tmp_path / "a")).attach(model, "default", seed=4)
    assert_near(logprobs(model), expected, 1e-6)
    wanted = method.attach(tiny_model("llama"), "default", seed=0)
    randomize(wanted, 0.3)
    assert list(again.trainables) == list(wanted.trainables)
    assert all(torch.equal(again.trainables[key], tensor) for key, tensor in wanted.trainables.items())


@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_a_file_of_peft_has_no_network_so_prompt_tuning_goes_on_with_its_rows(kind: str, tmp_path: Path) -> None:
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=6, encoder_reparameterization_type=kind
    )
    expected = made_by_peft(tmp_path / "p", "llama", config)
    with pytest.raises(RecipeError, match="not the network") as caught:
        PTuning(begin_from=str(tmp_path / "p")).attach(tiny_model("llama"), "default", seed=0)
    assert "prompt-tuning" in caught.value.mend
    model = tiny_model("llama")
    attachment = PromptTuning(begin_from=str(tmp_path / "p")).attach(model, "default", seed=0)
    assert_near(logprobs(model), expected)
    (tmp_path / "b").mkdir()
    attachment.write(tmp_path / "b", quiet)
    loaded = PeftModel.from_pretrained(plain_model("llama"), tmp_path / "b")
    assert_near(by_peft(loaded), expected)


def test_rows_that_the_network_does_not_make_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "llama", PTuning(num_virtual_tokens=3))
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    save_file({"prompt_embeddings": tensors["prompt_embeddings"] + 0.5}, tmp_path / "a" / WEIGHTS)
    with pytest.raises(RecipeError, match="does not make") as caught:
        PTuning(begin_from=str(tmp_path / "a")).attach(tiny_model("llama"), "default", seed=0)
    assert ENCODER in caught.value.mend
