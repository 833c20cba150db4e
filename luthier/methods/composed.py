"""Methods made of other methods, which work together under one adapter's name.

A composed method is one whose fields hold methods; a part is called by its place in the recipe: `prefix`, `parts.0`. Each
part places its own tensors, and the whole is what all of them say together. In one adapter a place of the model has one
part: two that want the same one are refused. Each part learns at its own default rate, in proportion to the recipe's.

On disk every part has a folder of its own beside the composed adapter's file, in the part's own form, so that other tools
read what they know:

    adapter/luthier_adapter.json   the settings, and what the parts are
    adapter/prefix/, …             the parts
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter import AdapterMethod
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.adapter_files import AdapterFile
from luthier.methods.contract import Group, StepDone
from luthier.methods.rows_files import read_adapter
from luthier.models.heads import ClassHead
from luthier.models.language_model import LanguageModel
from luthier.models.taps import Taps
from luthier.store.files import make_folder


class ComposedMethod(AdapterMethod):
    """A method whose parts are other methods."""

    free_fields: ClassVar[frozenset[str]] = frozenset()

    @property
    def named_parts(self) -> dict[str, AdapterMethod]:
        """The parts by their places in the recipe."""
        found: dict[str, AdapterMethod] = {}
        for field in type(self).model_fields:
            value = getattr(self, field)
            if isinstance(value, AdapterMethod):
                found[field] = value
            elif isinstance(value, tuple):
                found |= {f"{field}.{i}": part for i, part in enumerate(value) if isinstance(part, AdapterMethod)}
        return found

    @property
    def without_new_tokens(self) -> str | None:
        """What the first part says that has no place for them."""
        reasons = (part.without_new_tokens for part in self.named_parts.values())
        return next((reason for reason in reasons if reason is not None), None)

    def attach(self, model: LanguageModel, name: str, seed: int, *, fast: bool = True) -> AdapterAttachment:
        """Put the parts into the model. With `from`, each goes on from its own folder."""
        if self.begin_from is None:
            return self.place(model, name, seed, fast)
        file = read_adapter(self.form, self.begin_from)
        in_file = file.head_layers(model.anatomy)
        attachment = self._together(self._parts_of(file), model, name, seed, fast)
        attachment.train_head(tuple(n for n in model.anatomy.head_linears if n in in_file or n in model.new_head))
        attachment.load(file)
        return attachment

    def attach_without_head(self, model: LanguageModel, name: str, *, fast: bool = True) -> AdapterAttachment:
        """As for any adapter, and so for each part."""
        assert self.begin_from is not None
        file = replace(read_adapter(self.form, self.begin_from), whole=(), head={})
        attachment = self._together(self._parts_of(file), model, name, 0, fast)
        attachment.load(file)
        return attachment

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """The parts, fresh."""
        return self._together(self.named_parts, model, name, seed, fast)

    def joined(
        self, model: LanguageModel, name: str, parts: Mapping[str, AdapterAttachment]
    ) -> dict[str, nn.Parameter]:
        """What trains beside the parts, by name, once they are in their places; a method may bind them together here."""
        return {}

    def class_head(self, head: ClassHead) -> ClassHead:
        """As every part asks for it."""
        for part in self.named_parts.values():
            head = part.class_head(head)
        return head

    def file_settings(self) -> dict[str, Any]:
        """The parts, each with its settings."""
        return self.model_dump(mode="json", by_alias=True, exclude={"begin_from", "kind"})

    def as_recipe(self, *, whole: bool = True) -> dict[str, Any]:
        """As for any adapter, and so for each part."""
        whole = whole and self.begin_from is None
        parts = {key: part.as_recipe(whole=whole) for key, part in self.named_parts.items()}
        return _set(super().as_recipe(whole=whole), parts)

    def with_paths(self, found: Callable[[str], str]) -> Self:
        """These settings and the parts' with every path that they name as `found` gives it."""
        parts = {key: part.with_paths(found) for key, part in self.named_parts.items()}
        changed = {key: part for key, part in parts.items() if part is not self.named_parts[key]}
        own = super().with_paths(found)
        if not changed:
            return own
        fields = {key.partition(".")[0] for key in changed}
        return own.model_copy(update={field: _held(field, parts) for field in fields})

    def _parts_of(self, file: AdapterFile) -> dict[str, AdapterMethod]:
        """The parts that go on from an adapter's: as it has them, but for those that the recipe states."""
        kept, own = self._shaped_by(file).named_parts, self.named_parts
        parts: dict[str, AdapterMethod] = {}
        for key, part in kept.items():
            going_on = part.continued(Path(file.path) / key)
            stated = own.get(key) if key.partition(".")[0] in self.model_fields_set else None
            if stated is not None and stated.kind == part.kind and isinstance(going_on, type(stated)):
                going_on = stated.model_copy(update={"begin_from": str(Path(file.path) / key)})
            assert isinstance(going_on, AdapterMethod)
            parts[key] = going_on
        self._check_same_parts(kept)
        return parts

    def _check_same_parts(self, kept: Mapping[str, AdapterMethod]) -> None:
        """Raise RecipeError if the recipe states other parts than the adapter that it goes on from has."""
        fields = self.model_fields_set
        stated = [part.kind for key, part in self.named_parts.items() if key.partition(".")[0] in fields]
        found = [part.kind for key, part in kept.items() if key.partition(".")[0] in fields]
        if stated != found:
            raise RecipeError(
                f"The adapter that the recipe goes on from has other parts: {', '.join(found)}, not {', '.join(stated)}.",
                "Name its own parts, or begin afresh without method.from.",
                field="method.from",
            )

    def _together(
        self, parts: Mapping[str, AdapterMethod], model: LanguageModel, name: str, seed: int, fast: bool
    ) -> ComposedAttachment:
        """The parts in their places. Raises RecipeError if two of them want the same one."""
        attached: dict[str, AdapterAttachment] = {}
        taken: dict[str, str] = {}
        for key, part in parts.items():
            with of_part(key):
                attached[key] = part.attach(model, name, seed, fast=fast)
            for place in attached[key].occupied:
                if place in taken:
                    raise _conflict(place, taken[place], key)
                taken[place] = key
        if name in model.sides and len(parts) > 1:
            raise RecipeError(
                "A network beside the base reads it as it is, so that no other part of the method would learn.",
                "Train ladder and attention-fusion alone.",
                field="method.kind",
            )
        return ComposedAttachment(self, model, name, attached, self.joined(model, name, attached))


class ComposedAttachment(AdapterAttachment):
    """Several methods at work under one name; `shared` is what trains beside them."""

    def __init__(
        self,
        method: ComposedMethod,
        model: LanguageModel,
        name: str,
        parts: Mapping[str, AdapterAttachment],
        shared: Mapping[str, nn.Parameter],
    ) -> None:
        super().__init__(method, model, name, {}, shared=shared)
        self.parts = dict(parts)
        for part in self.parts.values():
            self.begin_head(part.head_start)
            part.train_head(())  # a new head is of the whole, and so are the rows of new tokens
            part.leave_rows()

    @property
    def groups(self) -> tuple[Group, ...]:
        """The parts' groups, each at its method's own rate, and what trains beside them."""
        own = super().groups if self.shared else (*self.head.groups, *self.new_rows.groups)
        return (*own, *(group for key, part in self.parts.items() for group in self._groups_of(key, part)))

    def _groups_of(self, key: str, part: AdapterAttachment) -> Iterator[Group]:
        rate = part.method.default_lr / self.method.default_lr
        for group in part.groups:
            tensors = {f"{key}.{name}": tensor for name, tensor in group.tensors.items()}
            yield Group(tensors, group.lr_factor * rate, group.decays)

    @property
    def lowest_changed(self) -> int | None:
        """The lowest of the parts'."""
        found = [part.lowest_layer for part in self.parts.values()]
        lowest = [index for index in found if index is not None]
        return min(lowest) if len(lowest) == len(found) else None

    @property
    def taps(self) -> Taps:
        """What a network beside the base reads, which then is the only part; else as the lowest layer says."""
        side = self.model.sides.get(self.name)
        return super().taps if side is None else side.taps

    @property
    def occupied(self) -> frozenset[str]:
        """The parts' places."""
        return frozenset(place for part in self.parts.values() for place in part.occupied)

    @property
    def draws(self) -> bool:
        """Whether a part draws for each document."""
        return any(part.draws for part in self.parts.values())

    @property
    def num_virtual(self) -> int:
        """The placeholders that a document must begin with."""
        return self.model.num_virtual(self.name)

    @property
    def num_virtual_answer(self) -> int:
        """Those that an encoder-decoder's answer must begin with."""
        return self.model.num_virtual_answer(self.name)

    def file_settings(self) -> dict[str, Any]:
        """What the parts are, as they now are."""
        parts = {
            key: part.method.model_dump(mode="json", by_alias=True, exclude={"begin_from"})
            for key, part in self.parts.items()
        }
        return _set(super().file_settings(), parts)

    def extra_loss(self) -> Tensor | None:
        """The sum of what the parts add."""
        extras = [extra for part in self.parts.values() if (extra := part.extra_loss()) is not None]
        return sum(extras[1:], start=extras[0]) if extras else None

    def after_step(self, done: StepDone) -> bool:
        """Let each part take notice, under its own names."""
        exchanged = [
            part.after_step(StepDone(done.number, done.num_steps, _under(key, done.gradients)))
            for key, part in self.parts.items()
        ]
        return any(exchanged)

    def state(self) -> dict[str, Tensor]:
        """What the parts remember."""
        return {f"{key}.{name}": tensor for key, part in self.parts.items() for name, tensor in part.state().items()}

    def trained_shapes(self, state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Those of the parts, and of what trains beside them."""
        of_parts = {
            f"{key}.{name}": shape
            for key, part in self.parts.items()
            for name, shape in part.trained_shapes(_under(key, state)).items()
        }
        beside = {
            name: tuple(tensor.shape)
            for name, tensor in {**self.shared, **self.head.tensors, **self.new_rows.named}.items()
        }
        return {**beside, **of_parts}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for key, part in self.parts.items():
            part.load_state(_under(key, state))

    def write(self, folder: Path, announce: Callable[[str], None]) -> None:
        """Write what is of the whole, and each part into its folder."""
        super().write(folder, announce)
        for key, part in self.parts.items():
            make_folder(folder / key)
            part.write(folder / key, announce)

    def merge(self) -> None:
        """Fold every part into the base. Raises RecipeError, before any is, if one cannot be."""
        unmergeable = [part.method.kind for part in self.parts.values() if not part.method.traits.merges]
        if unmergeable or self.shared:
            raise RecipeError(
                f"The adapter cannot be merged, since {' and '.join(unmergeable) or 'a gate'} cannot.",
                "Keep it beside the base model.",
                field="method.kind",
            )
        for part in self.parts.values():
            part.merge()
        self.head.merge()
        self.new_rows.merge()


def with_part_defaults(values: Any, defaults: Mapping[str, Mapping[str, Any]]) -> Any:
    """What a recipe says of a composed method, with a method's own defaults for fields of parts that it leaves out.

    With `from` the adapter's hold, and nothing is added.
    """
    if not isinstance(values, dict) or values.get("from", values.get("begin_from")) is not None:
        return values
    own = {field: values[field] for field in defaults if isinstance(values.get(field), dict)}
    return {**values, **{field: {**defaults[field], **value} for field, value in own.items()}}


def _set(values: dict[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """The values with those of parts exchanged, where there are any."""
    for key, part in parts.items():
        field, _, index = key.partition(".")
        if index and field in values:
            values[field][int(index)] = part
        elif field in values:
            values[field] = part
    return values


def _held(field: str, parts: Mapping[str, AdapterMethod]) -> AdapterMethod | tuple[AdapterMethod, ...]:
    """What a field holds: a part, or several."""
    return parts[field] if field in parts else tuple(part for key, part in parts.items() if key.startswith(field + "."))


def _under(key: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part by their own names."""
    return {name.removeprefix(key + "."): tensor for name, tensor in tensors.items() if name.startswith(key + ".")}


@contextmanager
def of_part(key: str) -> Iterator[None]:
    """Within: an error that names a field of a part names it as the recipe has it."""
    try:
        yield
    except RecipeError as error:
        if error.field is not None and error.field != "method.kind":
            error.field = error.field.replace("method.", f"method.{_in_recipe(key)}.", 1)
            error.mend = error.mend.replace("method.", f"method.{_in_recipe(key)}.")
        raise


def _in_recipe(key: str) -> str:
    """A part's place as a recipe's errors have it: parts[0]."""
    field, _, index = key.partition(".")
    return f"{field}[{index}]" if index else field


def _conflict(place: str, first: str, second: str) -> RecipeError:
    first, second = _in_recipe(first), _in_recipe(second)
    return RecipeError(
        f"Two parts of the method, {first} and {second}, both want {place}, where one adapter can have one.",
        "Leave it out of one of them, with its targets or layers, or take one of them away.",
        field=f"method.{second}",
    )
