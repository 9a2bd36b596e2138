"""Have products with a checkpoint's codes take activations in 8 bits, and say with how many."""

from __future__ import annotations

from collections import Counter

from engine.config import ConfigError
from engine.kernels.int8_activations import with_rounded_activations
from engine.kernels.quantized_weight import QuantizedWeight
from engine.layers.slot import Filling
from engine.models.fitting_options import ROUNDING as OPTION


class RoundedActivations:
    """Mark matrices for products with activations in 8 bits while they are read, and count them."""

    def __init__(self) -> None:
        self._groups: Counter[int] = Counter()  # matrices, by inputs that share a scale
        self._exact = 0

    def mark(self, filling: Filling) -> Filling:
        """Return the filling of a layer, marked where its codes are whole numbers."""
        matrix = filling.matrix
        if not isinstance(matrix, QuantizedWeight):
            return filling
        marked = with_rounded_activations(matrix)
        if marked.x_group:
            self._groups[marked.x_group] += 1
        else:
            self._exact += 1
        return filling._replace(matrix=marked)

    def said(self, name: str) -> str:
        """Say what became of the activations of model `name`. Raises `ConfigError`: nothing."""
        if not self._groups:
            raise ConfigError(
                f"{OPTION} is on, but no weight of {name} is made of whole numbers of 4 or 8 bits"
                " (tables of values and 8-bit floats are not): leave the option out."
            )
        groups = ", ".join(str(group) for group, _ in self._groups.most_common())
        said = f"activations rounded to int8 in groups of {groups}"
        if not self._exact:
            return said
        rounded = self._groups.total()
        return f"{said} for {rounded} of {rounded + self._exact} matrices, the others exact"
