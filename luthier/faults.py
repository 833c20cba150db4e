"""What is wrong with settings that are given as plain values, in words."""

from __future__ import annotations

from pydantic import ValidationError

from luthier.errors import UsageError
from luthier.types import Settings


def setting_fault(error: ValidationError, what: str, settings: type[Settings]) -> UsageError:
    """What is wrong with the first setting at fault, and which there are; what: whose settings they are, "Sampling"."""
    fault = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in fault["loc"])
    found = str(fault.get("ctx", {}).get("error", fault["msg"])).removesuffix(".")
    return UsageError(f"{name}: {found}.", f"{what} takes {', '.join(settings.model_fields)}.", field=name)
