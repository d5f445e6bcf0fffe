"""Which setting stands at a place: the sections and fields of the settings, by name."""

from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from schemabank.common.plainyaml import Location
from schemabank.config.settings import ExperimentConfig


def settings_at(model: type[BaseModel], location: Location) -> type[BaseModel]:
    """Return the kind of settings that stand at a location, which must be one of sections."""
    found = section_at(model, location)
    assert found is not None
    return found


def section_at(model: type[BaseModel], location: Location) -> type[BaseModel] | None:
    """Return the kind of settings that stand at a location; ``None`` where it is no section."""
    found: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, str) and found is not None:
            field = found.model_fields.get(part)
            found = None if field is None else _settings_in(field.annotation)
    return found


def setting_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings, those inside lists left out."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if _is_settings(field.annotation):
            yield from setting_names(field.annotation, f"{prefix}{name}.")


def is_text(key: Sequence[str]) -> bool:
    """Whether a dotted key, where a stage goes by its name, leads to a setting that is a text."""
    field = _field_at([*key[:1], *key[2:]] if key[0] == "curriculum" and key[1:] else key)
    return field is not None and _allows_only_text(field.annotation)


def _field_at(key: Sequence[str]) -> FieldInfo | None:
    model: type[BaseModel] | None = ExperimentConfig
    field: FieldInfo | None = None
    for part in key:
        field = None if model is None else model.model_fields.get(part)
        model = None if field is None else _settings_in(field.annotation)
    return field


def _allows_only_text(annotation: Any) -> bool:  # noqa: ANN401 -- annotations have no common type
    """Whether it is ``str``, with or without checks, or that or ``None``."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _allows_only_text(inner[0])
    if origin in {Union, UnionType}:
        return all(_allows_only_text(kind) for kind in inner if kind is not NoneType)
    return annotation is str


def _settings_in(annotation: object) -> type[BaseModel] | None:
    """The kind of settings that an annotation names, itself or as items of a list."""
    return next((kind for kind in (annotation, *get_args(annotation)) if _is_settings(kind)), None)


def _is_settings(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
