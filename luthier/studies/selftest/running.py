"""The self-test: what Luthier promises to be the same, measured on the user's own model and machine.

Each check is a file beside this one and computes something in two ways. A check that cannot be carried out counts as failed,
with what went wrong; one that the model has nothing for says so.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.models.settings import ModelSettings
from luthier.ops.shortage import is_shortage
from luthier.quantization.settings import QuantizationSettings
from luthier.studies.selftest import (
    accumulation,
    adapter_files,
    engine,
    fast_paths,
    few_bits,
    merging,
    packing,
    resuming,
    tied,
)
from luthier.studies.selftest.findings import Found, Lacking, Measured
from luthier.studies.selftest.subject import Announce, Subject, make_subject

Check = Callable[[Subject], Found]

CHECKS: dict[str, Check] = {
    "accumulation": accumulation.measure,
    "packing": packing.measure,
    "fast paths": fast_paths.measure,
    "few bits": few_bits.measure,
    "resume": resuming.measure,
    "adapter file": adapter_files.measure,
    "engine": engine.measure,
    "merged": merging.measure,  # it and the next change the model
    "tied head": tied.measure,
}
"""In the order in which they are made."""

SAYS = {
    "accumulation": "8 × 1 row = 1 × 8 rows",
    "packing": "together = alone",
    "fast paths": "fast = plain",
    "few bits": "packed = unpacked",
    "resume": "resumed = unbroken",
    "adapter file": "read back = written",
    "engine": "engine = trainer",
    "merged": "merged = beside",
    "tied head": "merged = beside",
}
"""What each compares."""


@dataclass(frozen=True)
class Checked:
    """What a check found, and the wall seconds that it took."""

    name: str
    found: Found
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return isinstance(self.found, Lacking) or all(measured.passed for measured in self.found)


@dataclass(frozen=True)
class SelfTest:
    """All checks of one model. dtype, device: what its weights are in, and where."""

    model: str
    dtype: str
    device: str
    checks: tuple[Checked, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[str, ...]:
        """The checks that did not."""
        return tuple(check.name for check in self.checks if not check.passed)

    def as_table(self) -> list[list[str]]:
        """A line for each comparison, under a head."""
        rows = [["check", "the same", "compared", "difference", "tolerance", ""]]
        for check in self.checks:
            if isinstance(check.found, Lacking):
                rows.append([check.name, SAYS[check.name], f"nothing: {check.found.reason}", "", "", "-"])
                continue
            for measured in check.found:
                off = "none" if measured.difference is None else f"{measured.difference:.1e}"
                allowed = "bit for bit" if measured.tolerance == 0 else f"{measured.tolerance:.0e}"
                word = "ok" if measured.passed else "FAILED"
                rows.append([check.name, SAYS[check.name], measured.fault or measured.what, off, allowed, word])
        return rows

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON values; a difference that is no number is null."""
        return {
            "model": self.model,
            "dtype": self.dtype,
            "device": self.device,
            "passed": self.passed,
            "seconds": self.seconds,
            "checks": [_as_json(check) for check in self.checks],
        }


def selftest(
    settings: ModelSettings,
    quantization: QuantizationSettings | None,
    announce: Announce,
    checks: Mapping[str, Check] = CHECKS,
) -> SelfTest:
    """Make checks on a model, all of them unless some are named. Raises: the errors of `load_model`; whatever tells of a shortage of memory."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="luthier-selftest-") as folder:
        subject = make_subject(settings, quantization, Path(folder), announce)
        made = []
        for name, measure in checks.items():
            announce(f"{name}: {SAYS[name]}")
            made.append(_checked(name, measure, subject))
    model = subject.model
    dtype = str(model.dtype).removeprefix("torch.")
    return SelfTest(settings.name, dtype, str(model.device), tuple(made), time.perf_counter() - began)


def _checked(name: str, measure: Check, subject: Subject) -> Checked:
    began = time.perf_counter()
    try:
        found = measure(subject)
    except Exception as error:  # whatever is broken must not keep the other checks from being made
        if is_shortage(error):
            raise
        found = [Measured("", None, subject.tolerance, fault=f"{type(error).__name__}: {error}")]
    return Checked(name, found, time.perf_counter() - began)


def _as_json(check: Checked) -> dict[str, Any]:
    lacking = check.found.reason if isinstance(check.found, Lacking) else None
    measured = [] if isinstance(check.found, Lacking) else check.found
    return {
        "name": check.name,
        "compares": SAYS[check.name],
        "passed": check.passed,
        "lacking": lacking,
        "seconds": check.seconds,
        "measured": [
            {
                "what": each.what,
                "difference": each.difference if each.difference not in (None, float("inf")) else None,
                "tolerance": each.tolerance,
                "passed": each.passed,
                "fault": each.fault,
            }
            for each in measured
        ],
    }
