"""What is said of a layer that came quantized and cannot be read."""

from __future__ import annotations

from luthier.errors import DataError


def layer_fault(name: str, what: str) -> DataError:
    """The error to raise. name: the layer. what: its fault, as it follows the name in a sentence."""
    return DataError(f"The quantized layer {name} {what}.", "Fetch the model again, or use the unquantized one.")
