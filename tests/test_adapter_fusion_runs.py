"""Runs that fuse the adapters of finished runs: resumed as unbroken, and used without those runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from near import assert_near
from tiny_model import write_tiny_model
from tiny_runs import begin, course, files_of, go_on, nothing, recipe_values, write_rows

from luthier.methods import ADAPTER
from luthier.store.files import MANIFEST
from luthier.tuned import load_run


class Stop(Exception):
    """The run ends here."""


def stop_after_three(step: dict[str, Any]) -> None:
    """Break a run off after its third step."""
    if step["step"] == 3:
        raise Stop


def test_a_fusion_of_two_runs_resumes_as_unbroken_and_needs_them_no_more(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", 12)
    for kind in ("pfeiffer", "houlsby"):
        method = {"kind": kind, "rank": None, "width": 4}
        begin(recipe_values(tmp_path / "model", rows, method=method), tmp_path / kind)
    adapters = [str(tmp_path / "pfeiffer"), str(tmp_path / "houlsby" / "adapter")]
    fused = {"kind": "adapter-fusion", "rank": None, "adapters": adapters}
    values = recipe_values(tmp_path / "model", rows, method=fused)
    begin(values, tmp_path / "whole")
    with pytest.raises(Stop):
        begin(values, tmp_path / "broken", on_step=stop_after_three)
    go_on(tmp_path / "broken")
    assert course(tmp_path / "broken") == course(tmp_path / "whole")
    whole, broken = (files_of(tmp_path / run / "adapter") for run in ("whole", "broken"))
    assert {name: data for name, data in whole.items() if name != MANIFEST} == {
        name: data for name, data in broken.items() if name != MANIFEST
    }
    assert {name.rpartition("/")[0] for name in whole} == {"", "fused/0", "fused/1"}
    before = [t.detach().clone() for t in load_run(tmp_path / "whole", nothing).hf.parameters()]
    for kind in ("pfeiffer", "houlsby"):
        (tmp_path / kind).rename(tmp_path / f"{kind}-gone")
    model = load_run(tmp_path / "whole", nothing)
    for one, other in zip(model.hf.parameters(), before, strict=True):
        assert_near(one, other, 0)
    assert any(f"{ADAPTER}:1" in name for name in dict(model.hf.named_modules()))
    values = recipe_values(
        tmp_path / "model", rows, method={"kind": "adapter-fusion", "rank": None, "from": str(tmp_path / "whole")}
    )
    begin(values, tmp_path / "more")
    assert course(tmp_path / "more")[-1]["loss"] < course(tmp_path / "whole")[0]["loss"]
