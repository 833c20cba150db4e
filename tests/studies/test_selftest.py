"""The self-test passes on sound models of every kind, and fails, naming the check, when an operation is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import write_tiny_encoder, write_tiny_encoder_decoder
from tiny_runs import nothing, one_thread
from torch import Tensor

import luthier.data.batches
import luthier.generation.engine
import luthier.generation.paged_keys
import luthier.methods.adapter_attachment
import luthier.methods.lora_layers
import luthier.models.attention
import luthier.ops.gated
import luthier.ops.head
import luthier.ops.lora
import luthier.ops.norm
import luthier.ops.products
import luthier.quantization.four_bit
import luthier.training.flat
from luthier.cli import main as program
from luthier.models.settings import ModelSettings
from luthier.quantization.settings import QuantizationSettings
from luthier.studies.selftest.findings import Lacking, Measured, apart, unlike
from luthier.studies.selftest.running import CHECKS, SAYS, SelfTest, selftest
from luthier.types import Segment

NF4 = QuantizationSettings(kind="nf4")


def measured(
    model: Path, quantization: QuantizationSettings | None = None, dtype: Any = "fp32", check: str | None = None
) -> SelfTest:
    settings = ModelSettings(name=str(model), dtype=dtype, device="cpu")
    with one_thread():
        return selftest(settings, quantization, nothing, CHECKS if check is None else {check: CHECKS[check]})


def lacking(result: SelfTest) -> set[str]:
    return {check.name for check in result.checks if isinstance(check.found, Lacking)}


# ── what is sound passes ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sound_decoder_passes_every_check(tiny_model: Path):
    result = measured(tiny_model)
    assert result.passed, result.as_table()
    assert tuple(check.name for check in result.checks) == tuple(CHECKS) == tuple(SAYS)
    assert lacking(result) == {"few bits"}
    assert len(result.as_table()) == 1 + sum(
        1 if isinstance(check.found, Lacking) else len(check.found) for check in result.checks
    )


def test_a_base_in_four_bits_passes_every_check(tiny_model: Path):
    result = measured(tiny_model, NF4)
    assert result.passed, result.as_table()
    assert not lacking(result)


def test_half_precision_passes_within_its_own_tolerance(tiny_model: Path):
    result = measured(tiny_model, dtype="bf16")
    assert result.passed, result.as_table()


def test_an_encoder_passes_what_it_has(tmp_path: Path):
    result = measured(write_tiny_encoder(tmp_path / "bert"))
    assert result.passed, result.as_table()
    assert lacking(result) == {"few bits", "engine"}


def test_an_encoder_decoder_passes_what_it_has(tmp_path: Path):
    result = measured(write_tiny_encoder_decoder(tmp_path / "t5"))
    assert result.passed, result.as_table()
    assert lacking(result) == {"few bits"}


# ── what is broken fails ────────────────────────────────────────────────────────────────────────────────────────────

Breaks = Callable[[pytest.MonkeyPatch], None]


def keep_the_last_gradient_alone(patch: pytest.MonkeyPatch) -> None:
    flat = luthier.training.flat.FlatTrainables
    add = flat.add_gradients

    def last(self: Any, worker: int, gradients: Any) -> None:
        self.clear_gradients()
        add(self, worker, gradients)

    patch.setattr(flat, "add_gradients", last)


def let_documents_see_each_other(patch: pytest.MonkeyPatch) -> None:
    attend = luthier.models.attention.packed_attention

    def leaking(q: Tensor, k: Tensor, v: Tensor, segments: Any, terms: Any) -> Tensor:
        return attend(q, k, v, (Segment(0, q.shape[2]),), terms)

    patch.setattr(luthier.models.attention, "packed_attention", leaking)


def scaled(module: Any, name: str, by: float) -> Breaks:
    """An operation whose first result is a little too large."""

    def breaks(patch: pytest.MonkeyPatch) -> None:
        compute = getattr(module, name)

        def wrong(*given: Any, **named: Any) -> Any:
            found = compute(*given, **named)
            return (found[0] * by, *found[1:]) if isinstance(found, tuple) else found * by

        is_static = isinstance(vars(module).get(name), staticmethod)
        patch.setattr(module, name, staticmethod(wrong) if is_static else wrong)

    return breaks


def forget_where_the_data_stood(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(luthier.data.batches.StepBatches, "load_state_dict", lambda self, state: None)


def write_half_precision(patch: pytest.MonkeyPatch) -> None:
    attachment = luthier.methods.adapter_attachment.AdapterAttachment
    write = attachment.write

    def rounded(self: Any, folder: Path, announce: Any) -> None:
        kept = {name: tensor.detach().clone() for name, tensor in self.trainables.items()}
        for tensor in self.trainables.values():
            tensor.data.copy_(tensor.detach().bfloat16())
        write(self, folder, announce)
        for name, tensor in self.trainables.items():
            tensor.data.copy_(kept[name])

    patch.setattr(attachment, "write", rounded)


def unpack_a_little_too_large(patch: pytest.MonkeyPatch) -> None:
    weight = luthier.quantization.four_bit.FourBitWeight
    unpack = weight.unpack_into

    def wrong(self: Any, out_N: Tensor) -> None:
        unpack(self, out_N)
        out_N.mul_(1.001)

    patch.setattr(weight, "unpack_into", wrong)


def merge_without_the_strength(patch: pytest.MonkeyPatch) -> None:
    def merged(self: Any, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight_OI + self.b_OR.float() @ self.a_RI.float(), bias_O

    patch.setattr(luthier.methods.lora_layers.LoRABranch, "merged", merged)


def let_the_adapter_say_nothing(patch: pytest.MonkeyPatch) -> None:
    attached = luthier.studies.selftest.subject.attached

    def silent(*given: Any, **settings: Any) -> Any:
        attachment = attached(*given, **settings)
        for tensor in attachment.trainables.values():
            tensor.data.zero_()
        return attachment

    patch.setattr(luthier.studies.selftest.subject, "attached", silent)


def leave_the_head_tied(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(luthier.methods.adapter_attachment, "_untie", lambda model: None)


BROKEN: dict[str, tuple[str, Breaks]] = {
    "gradients that do not add up": ("accumulation", keep_the_last_gradient_alone),
    "documents that see each other": ("packing", let_documents_see_each_other),
    "a norm": ("fast paths", scaled(luthier.ops.norm._RMSNorm, "forward", 1.001)),
    "the gradient of a norm": ("fast paths", scaled(luthier.ops.norm._RMSNorm, "backward", 1.001)),
    "the gradient of a gated product": ("fast paths", scaled(luthier.ops.gated._GatedProduct, "backward", 1.001)),
    "the head": ("fast paths", scaled(luthier.ops.head._TokenLogprobs, "forward", 1.001)),
    "the gradient of the head": ("fast paths", scaled(luthier.ops.head._TokenLogprobs, "backward", 1.001)),
    "the gradient of a frozen layer": ("fast paths", scaled(luthier.ops.products._FrozenLinear, "backward", 1.001)),
    "the gradient under LoRA": ("fast paths", scaled(luthier.ops.lora._UpdatedLinear, "backward", 1.001)),
    "unpacking": ("few bits", unpack_a_little_too_large),
    "the place in the data": ("resume", forget_where_the_data_stood),
    "an adapter's file": ("adapter file", write_half_precision),
    "attention over pages": ("engine", scaled(luthier.generation.paged_keys, "paged_attention", 1.01)),
    "merging": ("merged", merge_without_the_strength),
    "an adapter that says nothing": ("merged", let_the_adapter_say_nothing),
    "a tied head": ("tied head", leave_the_head_tied),
}


def test_every_check_is_seen_to_fail():
    assert {check for check, _ in BROKEN.values()} == set(CHECKS)


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_operation_fails_its_check(what: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    check, breaks = BROKEN[what]
    breaks(monkeypatch)
    result = measured(tiny_model, NF4 if check == "few bits" else None, check=check)
    assert result.failed == (check,), result.as_table()
    assert not result.passed


def test_a_check_that_breaks_off_counts_as_failed_and_the_others_are_made(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(*given: object) -> None:
        raise ValueError("the cache is upside down")

    monkeypatch.setattr(luthier.generation.engine.Engine, "step", broken)
    result = measured(tiny_model)
    assert result.failed == ("engine",)
    (line,) = [row for row in result.as_table() if row[0] == "engine"]
    assert "upside down" in line[2]
    assert line[-1] == "FAILED"


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_prints_a_table_and_ends_with_0(tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    with one_thread():
        assert program.main(["selftest", "--model", str(tiny_model)]) == 0
    out = capsys.readouterr().out
    assert "All that must be the same is the same" in out
    assert all(name in out for name in CHECKS)
    assert "FAILED" not in out


def test_the_command_fails_loudly_with_1_and_one_document(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    merge_without_the_strength(monkeypatch)
    with one_thread():
        assert program.main(["selftest", "--model", str(tiny_model), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is False
    failed = [check["name"] for check in document["checks"] if not check["passed"]]
    assert "merged" in failed
    (merged,) = (check for check in document["checks"] if check["name"] == "merged")
    assert merged["measured"][0]["difference"] > merged["measured"][0]["tolerance"] > 0


def test_a_model_that_is_not_there_is_not_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert program.main(["selftest", "--model", str(tmp_path / "nothing"), "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "NotFound"


# ── differences ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_has_another_shape_or_is_no_number_is_infinitely_far_apart():
    one = torch.ones(3)
    assert apart(one, torch.ones(4)) == apart(one, torch.tensor([1.0, float("nan"), 1.0])) == float("inf")
    assert unlike({"a": one}, {"b": one}) == float("inf")
    assert not Measured("x", float("inf"), 1.0).passed
    assert not Measured("x", float("nan"), 1.0).passed


def test_a_difference_is_a_share_of_the_largest_number_compared():
    assert apart(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])) == pytest.approx(0.25)
    assert apart(
        {"a": torch.tensor(1.5), "b": torch.tensor(8.0)}, {"a": torch.tensor(1.0), "b": torch.tensor(8.0)}
    ) == (pytest.approx(0.0625))
    assert apart(torch.tensor(1.0), torch.tensor(0.0)) == float("inf")
