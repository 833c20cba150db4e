"""The arithmetic that is often quoted is what the code comes to, and what the page says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig

from luthier.models.language_model import FastModel, LanguageModel
from luthier.models.loading import Wishes
from luthier.models.shapes import NAMED
from luthier.planner.arithmetic import facts, num_parameters
from luthier.planner.packed import as_settings_say
from luthier.planner.skeleton import skeleton
from luthier.planner.tracker import all_tensors, storages
from luthier.quantization.settings import QuantizationSettings

PAGE = Path(__file__).parents[2] / "docs" / "planning.md"


def bytes_of(what: str) -> int:
    found = next(fact.num_bytes for fact in facts() if fact.what == what)
    assert found is not None
    return found


def built(name: str, quantization: QuantizationSettings | None) -> tuple[int, int]:
    """The bytes of a named shape as the planner builds it in bf16, and its numbers where none is packed."""

    def build() -> tuple[int, int]:
        config = AutoConfig.for_model(**NAMED[name])
        packed = None if quantization is None else as_settings_say(quantization)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model: LanguageModel = skeleton(
                config, torch.bfloat16, FastModel(), head=None, quantization=packed, wishes=Wishes()
            )
            return storages(all_tensors(model.hf)), sum(each.numel() for each in model.hf.parameters())

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(build).result()


def test_65_billion_take_what_is_quoted_by_the_code_itself() -> None:
    packed, _ = built("llama-65b", QuantizationSettings(kind="nf4", double=True))
    assert packed / 1e9 == pytest.approx(34.5, abs=0.05)
    assert packed == pytest.approx(bytes_of("65 B in NF4 with double quantization"), rel=0.001)
    whole, count = built("llama-65b", None)
    assert count == num_parameters(NAMED["llama-65b"])
    assert whole == pytest.approx(2 * count, rel=1e-6)
    assert 12 * count == bytes_of("65 B trained in half precision")
    assert 12 * count / 1e9 == pytest.approx(783, abs=0.5)


def test_a_billion_takes_four_gigabytes_to_load_and_up_to_eighty_to_train() -> None:
    amounts = {fact.what: fact.amount for fact in facts()}
    assert amounts["1 B parameters in fp32, loaded"] == "4 GB"
    assert amounts['"up to 80 GB to train 1 B"'] == "80 GB"
    assert all(fact.why for fact in facts())


def test_the_page_has_every_fact_as_it_is_worked_out() -> None:
    page = PAGE.read_text("utf-8")
    for fact in facts():
        assert f"| {fact.what} | {fact.amount} | {fact.why} |" in page
