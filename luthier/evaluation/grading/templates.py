"""Texts with places for a row's columns and the answer: `{{ item.answer }}`, `{{ sample.output_text }}`.

Plain substitution: a name and a path of keys or list indices, nothing that is computed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from luthier.evaluation.grading.contract import Item, Sample

_PLACE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PATH = re.compile(r"\s*(item|sample)((?:\.[\w-]+|\[\d+\])*)\s*")
_STEP = re.compile(r"\.([\w-]+)|\[(\d+)\]")
_OF_SAMPLE = ("output_text", "output_json")


class Missing(Exception):
    """A place names a column that the row does not have."""


def checked(text: str) -> str:
    """The template; ValueError for a place that names neither a column nor the answer."""
    for place in _PLACE.findall(text):
        match = _PATH.fullmatch(place)
        steps = [] if match is None else _steps(match[2])
        if match is None or not steps or (match[1] == "sample" and steps[0] not in _OF_SAMPLE):
            raise ValueError(
                f"{{{{{place}}}}} names nothing: write {{{{ item.COLUMN }}}}, {{{{ sample.output_text }}}} or "
                "{{ sample.output_json.KEY }}"
            )
    return text


Template = Annotated[str, AfterValidator(checked)]
"""A text in which `{{ item.COLUMN }}` and `{{ sample.output_text }}` stand for the row's and the answer's own."""


def filled(template: str, sample: Sample, item: Item) -> str:
    """The template with each place filled: texts and dates as they read, numbers and what holds others as JSON. Raises: Missing."""

    def value_at(place: re.Match[str]) -> str:
        match = _PATH.fullmatch(place[1])
        assert match is not None, "templates are checked before they are filled"
        first, *others = _steps(match[2])
        if match[1] == "item":
            value = _step(item, first, place[0])
        else:
            value = sample.text if first == "output_text" else sample.json
        for step in others:
            value = _step(value, step, place[0])
        is_json = value is None or isinstance(value, list | Mapping | int | float)
        return json.dumps(value, ensure_ascii=False, default=str) if is_json else str(value)

    return _PLACE.sub(value_at, template)


def _steps(path: str) -> list[str]:
    return [key or index for key, index in _STEP.findall(path)]


def _step(value: Any, step: str, place: str) -> Any:
    if isinstance(value, list) and step.isdigit() and int(step) < len(value):
        return value[int(step)]
    if isinstance(value, Mapping) and step in value:
        return value[step]
    raise Missing(f"{place} finds nothing at {step!r}")
