"""altair, which draws charts, by its own names; imported when the first chart is drawn.

It is optional (``schemabank[report]``) and takes a second. A report on a terminal does without.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from altair import (
        Axis,
        Chart,
        Color,
        Facet,
        FacetChart,
        InlineData,
        LayerChart,
        Legend,
        Opacity,
        Row,
        Scale,
        Shape,
        Step,
        StrokeDash,
        Tooltip,
        X,
        XOffset,
        Y,
        layer,
        value,
    )

__all__ = [
    "Axis",
    "Chart",
    "Color",
    "Facet",
    "FacetChart",
    "InlineData",
    "LayerChart",
    "Legend",
    "Opacity",
    "Row",
    "Scale",
    "Shape",
    "Step",
    "StrokeDash",
    "Tooltip",
    "X",
    "XOffset",
    "Y",
    "layer",
    "value",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'schemabank.report.altair' has no attribute {name!r}")
    return getattr(importlib.import_module("altair"), name)
