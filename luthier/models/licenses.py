"""What a base model is called on the hub, and under which license it is, as far as its own files say."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from luthier.errors import LuthierError
from luthier.models.builtin import BUILTIN_MODELS
from luthier.models.settings import ModelSettings
from luthier.models.sources import locate


@dataclass(frozen=True)
class Published:
    """name: on the hub; None where the model is not known to be there. license: as the hub writes it; None where nothing says.

    note: in what the model differs from that of the hub.
    """

    name: str | None
    license: str | None
    note: str = ""


def published(settings: ModelSettings) -> Published:
    """What is known of a base model that a run has just used."""
    builtin = next((model for model in BUILTIN_MODELS if model.name == settings.name), None)
    if builtin is not None:
        return Published(
            builtin.published_as,
            builtin.license,
            "here in 4-bit numbers, so that the one of the hub says a little else",
        )
    try:
        source = locate(settings, lambda sentence: None)
        card = (source.folder / "README.md").read_text("utf-8")
    except (LuthierError, OSError, UnicodeDecodeError):
        return Published(None, None)
    return Published(source.name if source.kind == "hub" else None, _license_in(card))


def _license_in(card: str) -> str | None:
    """The license that the header of a model card names."""
    if not card.startswith("---\n"):
        return None
    try:
        header = yaml.safe_load(card[4:].partition("\n---")[0])
    except yaml.YAMLError:
        return None
    named = header.get("license") if isinstance(header, dict) else None
    return named if isinstance(named, str) else None
