"""`luthier doctor`: what this machine and this environment offer, and what is amiss."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from luthier.cli.options import Json
from luthier.cli.output import emit
from luthier.cli.process import glibc_version, usable_cores
from luthier.sizes import readable_bytes
from luthier.version import __version__

# Package: (oldest version that is allowed, version that the tests run with). Tests hold both to pyproject.toml and
# constraints.txt.
PACKAGES = {
    "torch": ("2.6", "2.13.0"),
    "transformers": ("5.0", "5.23.0"),
    "tokenizers": ("0.21", "0.23.3"),
    "safetensors": ("0.4.3", "0.8.0"),
    "huggingface_hub": ("1.0", "2.4.0"),
    "pydantic": ("2.9", "2.14.3"),
    "numpy": ("1.26", "2.4.6"),
    "pyarrow": ("15", "26.0.1"),
    "gguf": ("0.10", "0.19.0"),
}

OPTIONAL = ("datasets", "llguidance", "tensorboard", "wandb", "mlflow", "peft", "trl")

_LITTLE_MEMORY = 4 * 10**9
_LITTLE_DISK = 5 * 10**9


def doctor(as_json: Json = False) -> None:
    """Say what this machine and this environment offer, and what is amiss."""
    report = examine(Path.cwd())
    emit(report, _text(report), as_json)
    if report["problems"]:
        raise typer.Exit(1)


def examine(folder: Path) -> dict[str, Any]:
    """The facts, with `problems` (Luthier will not work) and `remarks` (it will, but look)."""
    import psutil

    from luthier.store.cache import cache_root, list_entries

    memory = psutil.virtual_memory()
    cache = cache_root()
    packages = {name: _package(name, oldest, tested) for name, (oldest, tested) in PACKAGES.items()}
    report: dict[str, Any] = {
        "luthier": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": usable_cores(),
        **_of_torch(),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "disk_free_bytes": shutil.disk_usage(folder).free,
        "cache": {
            "folder": str(cache),
            "bytes": sum(entry.bytes for entry in list_entries(cache)),
            "free_bytes": shutil.disk_usage(_existing(cache)).free,
        },
        "allocator": f"glibc {glibc_version()}" if glibc_version() else "not glibc: left as it is",
        "packages": packages,
        "optional": {name: _version(name) for name in OPTIONAL},
    }
    report["problems"] = _problems(packages)
    if report["torch_fault"] and packages["torch"]["installed"]:
        report["problems"].append(f"torch cannot be loaded: {report['torch_fault']}. Install it again.")
    report["remarks"] = _remarks(report, packages)
    return report


def _of_torch() -> dict[str, Any]:
    """What torch says of the machine; where it cannot be loaded, why."""
    try:
        import torch
    except (ImportError, OSError) as error:  # a part of it is missing, or a library that it needs
        return {"threads": None, "cpu_capability": None, "gpus": [], "torch_fault": str(error)}
    return {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "torch_fault": None,
    }


def _package(name: str, oldest: str, tested: str) -> dict[str, str | None]:
    return {"installed": _version(name), "oldest": oldest, "tested": tested}


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return path if path.exists() else _existing(path.parent)


def _problems(packages: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    problems = []
    for name, versions in packages.items():
        installed, oldest = versions["installed"], versions["oldest"]
        if installed is None:
            problems.append(f"{name} is not installed; run: pip install '{name}>={oldest}'")
        elif oldest is not None and _numbers(installed) < _numbers(oldest):
            problems.append(f"{name} is {installed}; run: pip install '{name}>={oldest}'")
    return problems


def _remarks(report: Mapping[str, Any], packages: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    remarks = [
        f"{name} is {versions['installed']}, newer than the tested {versions['tested']}."
        for name, versions in packages.items()
        if versions["installed"] and _numbers(versions["installed"]) > _numbers(str(versions["tested"]))
    ]
    if report["memory_available_bytes"] < _LITTLE_MEMORY:
        free = readable_bytes(report["memory_available_bytes"])
        remarks.append(f"Only {free} of memory are free; tuning the built-in model takes about 2.5 GB.")
    for place, free_bytes in (("here", report["disk_free_bytes"]), ("for the cache", report["cache"]["free_bytes"])):
        if free_bytes < _LITTLE_DISK:
            remarks.append(f"Only {readable_bytes(free_bytes)} of disk are free {place}.")
    return remarks


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.13.0+cpu → (2, 13, 0)."""
    numbers = []
    for part in version.split("."):
        leading = re.match(r"\d+", part)
        if leading is None:
            break
        numbers.append(int(leading[0]))
        if leading[0] != part:  # 0rc1, 0+cpu: what follows is no number
            break
    return tuple(numbers)


def _text(report: Mapping[str, Any]) -> str:
    cache = report["cache"]
    used = f" (torch uses {report['threads']} threads, {report['cpu_capability']})" if report["threads"] else ""
    rows = [
        ("luthier", report["luthier"]),
        ("python", report["python"]),
        ("platform", report["platform"]),
        ("cores", str(report["cores"]) + used),
        ("gpus", ", ".join(report["gpus"]) or "none"),
        ("memory", f"{_bytes(report, 'memory_available_bytes')} free of {_bytes(report, 'memory_bytes')}"),
        ("disk", f"{_bytes(report, 'disk_free_bytes')} free here"),
        ("cache", f"{readable_bytes(cache['bytes'])} in {cache['folder']}, {_bytes(cache, 'free_bytes')} free"),
        ("allocator", report["allocator"]),
    ]
    for name, versions in report["packages"].items():
        found = versions["installed"] or "missing"
        rows.append((name, f"{found} (needs {versions['oldest']} or newer, tested with {versions['tested']})"))
    for name, version in report["optional"].items():
        rows.append((name, version or "not installed (optional)"))
    lines = [f"{name:16} {value}" for name, value in rows]
    lines += [f"problem: {problem}" for problem in report["problems"]]
    lines += [f"remark: {remark}" for remark in report["remarks"]]
    if not report["problems"]:
        lines.append("All is well." if not report["remarks"] else "Luthier will work here.")
    return "\n".join(lines)


def _bytes(values: Mapping[str, Any], key: str) -> str:
    return readable_bytes(values[key])
