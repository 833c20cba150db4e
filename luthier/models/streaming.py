"""A model whose chosen layers are quantized while its files are read, or come quantized: one weight at a time is held in full.

transformers builds the model without memory and hands over one weight after another, under the names of its modules,
whatever the files call them. It lets a quantizer of ours take the weights of the chosen layers, or all that the files hold of
quantized ones, and these become `QuantizedLinear`s once all are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from luthier.models.anatomy import replace_module
from luthier.models.experts import PROJECTIONS, is_stack, layers_held, parameters_of, split_experts, stacks_transposed
from luthier.quantization.packed import PackedWeight, QuantizedLinear
from luthier.store.mapped import forget_mapped

_NAME = "luthier"
_MOST_MAPPED = 2**27
"""Bytes of files after which their pages are let go of."""

Choose = Callable[[PreTrainedModel], tuple[str, ...]]
"""The layers to quantize, from the model without weights."""


@dataclass(frozen=True)
class Prepared:
    """A layer's packed weight, and the first tensors of a method at it, by their names there."""

    packed: PackedWeight
    first: Mapping[str, Tensor] = field(default_factory=dict)


Pack = Callable[[str, Mapping[str, Tensor]], Prepared]
"""A layer's weight, packed, from its name and its tensors by ending: `weight` (O, I), or what files hold of a packed one."""

Packing = Callable[[Tensor], PackedWeight]
"""Quantizes a weight (O, I) as the recipe says."""

Prepare = Callable[[str, Tensor, Packing], Prepared]
"""What a method makes of a layer's full weight (O, I) before it is gone."""


def only_packed(name: str, weight_OI: Tensor, pack: Packing) -> Prepared:
    """The weight packed as it is."""
    return Prepared(pack(weight_OI))


class Streaming(QuantizationConfigMixin):
    """What becomes of a model's weights while they are read, in the form that `from_pretrained` takes it.

    choose: which layers are to be quantized. endings: what the files hold, beside `weight`, of layers that come quantized;
    there are none if this is empty. are_stacked: whether these are layers of experts, in one tensor for each ending.
    are_blocks: whether the weights of the chosen layers come as a GGUF file's blocks. files: those that are read, of which no
    more than some hundred megabytes are to be in memory at a time.
    """

    def __init__(
        self,
        choose: Choose,
        pack: Pack,
        endings: tuple[str, ...] = (),
        *,
        are_stacked: bool = False,
        are_blocks: bool = False,
        files: Sequence[Path] = (),
    ) -> None:
        self.quant_method = _NAME  # type: ignore[assignment]
        self.choose = choose
        self.pack = pack
        self.endings = endings
        self.come_packed = are_blocks or bool(endings)
        self.sources = _sources(endings, are_stacked)
        self.ending_of_source = {name: ending for names in self.sources.values() for name, ending in names.items()}
        self.files = files
        self._mapped = 0
        self.prepared: dict[str, Prepared] = {}
        self.misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        self.error: Exception | None = None

    def to_dict(self) -> dict[str, Any]:
        """What transformers may print."""
        return {"quant_method": _NAME}

    def __deepcopy__(self, memo: dict[int, Any]) -> Streaming:
        return self  # what is found while reading is for the one who gave it

    def take(self, model: PreTrainedModel, parameter: str, tensors: Mapping[str, Tensor]) -> None:
        """Pack the weights of the layers that a parameter holds. The parameter stays without memory, marked as filled."""
        own = model.get_parameter(parameter)
        if not self._fits(parameter, own, tensors):
            return
        layers, is_stacked = layers_held(model, parameter), is_stack(parameter)
        is_transposed = stores_transposed(model, parameter)
        rows, columns = own.shape[-2:]
        for index, layer in enumerate(layers):
            of_one = {ending: tensor[index] for ending, tensor in tensors.items()} if is_stacked else tensors
            if is_transposed and not self.come_packed:
                of_one = {"weight": of_one["weight"].t()}
            self._pack(layer, of_one, (columns, rows) if is_transposed else (rows, columns))

    def _fits(self, name: str, own: nn.Parameter, tensors: Mapping[str, Tensor]) -> bool:
        """Whether what is to be packed has the parameter's shape; noted if not."""
        own._is_hf_initialized = True  # type: ignore[attr-defined]
        whole = tensors.get("weight")
        if self.come_packed or whole is None or whole.shape == own.shape:
            return True
        self.misshapen.append((name, tuple(whole.shape), tuple(own.shape)))
        return False

    def _pack(self, name: str, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
        prepared = self.prepared[name] = self.pack(name, tensors)
        self._mapped += sum(tensor.nbytes for tensor in tensors.values())
        if self._mapped >= _MOST_MAPPED:
            self._mapped = 0
            forget_mapped(self.files)
        if prepared.packed.shape != shape:
            self.misshapen.append((f"{name}.weight", prepared.packed.shape, shape))

    def put(self, model: PreTrainedModel) -> None:
        """Put a quantized layer in the place of each whose weight was packed, experts apart."""
        split_experts(model)
        for name, prepared in self.prepared.items():
            layer = model.get_submodule(name)
            bias, dtype = dict(layer.named_parameters()).get("bias"), layer.get_parameter("weight").dtype
            replace_module(model, name, QuantizedLinear(prepared.packed, bias, dtype, isinstance(layer, Conv1D)))

    def check(self, report: dict[str, Any]) -> None:
        """Raise what went wrong with a weight; add to a loading report those that had another shape than the config says."""
        if self.error is not None:
            raise self.error
        report["mismatched_keys"] = [*report.get("mismatched_keys", ()), *self.misshapen]


def stores_transposed(model: PreTrainedModel, parameter: str) -> bool:
    """Whether a parameter holds the weights of its layers as (I, O)."""
    if is_stack(parameter):
        return stacks_transposed(model, parameter)
    return isinstance(model.get_submodule(parameter.rpartition(".")[0]), Conv1D)


def _sources(endings: tuple[str, ...], are_stacked: bool) -> dict[str, dict[str, str]]:
    """How parameters of layers that come quantized end, and what files have in their place: its ending, and what it is of a layer."""
    if not endings:
        return {}
    if are_stacked:
        return {name: {f"{name}_{ending}": ending for ending in endings} for name in PROJECTIONS}
    return {"weight": {ending: ending for ending in (*endings, "weight")}}


class _Take(ConversionOps):
    """What transformers calls with each weight of a chosen layer, and with all that files hold of a layer."""

    def __init__(self, quantizer: _Quantizer) -> None:
        self.hf_quantizer = quantizer  # by this name transformers knows that the tensors are not to be cast
        self.streaming = quantizer.quantization_config

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Take the weight; nothing is left for transformers to put anywhere. What is not quantized goes on as it is."""
        model, parameter = kwargs["model"], kwargs["full_layer_name"]
        named = {key: value[0] if isinstance(value, list) else value for key, value in input_dict.items()}
        endings = self.streaming.ending_of_source
        if endings and set(named) == {"weight"}:
            dtype = model.get_parameter(parameter).dtype
            return {key: tensor.to(dtype) for key, tensor in named.items()}
        tensors = {endings.get(key, "weight"): tensor for key, tensor in named.items()}
        kwargs["missing_keys"].discard(parameter)
        try:
            if self.streaming.error is None:
                self.streaming.take(model, parameter, tensors)
        except Exception as error:  # transformers would make a report of it
            self.streaming.error = error
        return {}


def _is_ours(converter: WeightConverter) -> bool:
    return any(isinstance(operation, _Take) for operation in converter.operations)


@register_quantizer(_NAME)
class _Quantizer(HfQuantizer):
    """Stands between transformers' loading and a `Streaming`."""

    quantization_config: Streaming

    def __init__(self, quantization_config: Streaming, **others: Any) -> None:
        super().__init__(quantization_config, **others)
        self.pre_quantized = bool(quantization_config.endings)
        self.chosen: frozenset[str] = frozenset()

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **others: Any) -> bool:
        """Whether this holds the weights of chosen layers."""
        return param_name in self.chosen

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **others: Any) -> PreTrainedModel:
        self.chosen = parameters_of(model, frozenset(self.quantization_config.choose(model)))
        return model

    def get_quantize_ops(self) -> ConversionOps:
        """The operation on a weight that is to be quantized."""
        return _Take(self)

    def get_weight_conversions(self) -> list[Any]:
        """The operation on all that files hold of a layer, where layers come quantized."""
        return [
            WeightConverter(list(sources), target, [_Take(self)])
            for target, sources in self.quantization_config.sources.items()
        ]

    def postprocess_model(self, model: PreTrainedModel, **others: Any) -> None:
        """Exchange the layers, and leave no trace beside: the model is an ordinary one with other layers."""
        self.quantization_config.put(model)
        conversions = vars(model).get("_weight_conversions") or []  # of which saving would undo what is ours
        kept = [each for each in conversions if not (isinstance(each, WeightConverter) and _is_ours(each))]
        model._weight_conversions = kept  # type: ignore[assignment]
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]

    def is_serializable(self) -> bool:
        """transformers is not asked to save it."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Whether something may train beside these weights."""
        return True
