"""Numbers about tokens that can be added up over micro batches and ranks."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True, kw_only=True)
class Stats:
    """Sums with their counts, and maxima, all without gradient.

    Tensors until `read`, so that a GPU is not waited for at every micro batch.
    """

    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By name: (sum, count), each []."""
    maxima: dict[str, Tensor] = field(default_factory=dict)
    """By name: []."""

    def add_mean(self, name: str, values: Tensor, mask: Tensor) -> None:
        """A mean of `values` where `mask` is 1; both of one shape."""
        with torch.no_grad():
            total = torch.where(mask.bool(), values, torch.zeros_like(values)).sum()
            self.sums[name] = (total.double(), mask.sum().double())

    def add_max(self, name: str, values: Tensor, mask: Tensor) -> None:
        """The largest of `values` where `mask` is 1; both of one shape."""
        with torch.no_grad():
            self.maxima[name] = values.masked_fill(~mask.bool(), -torch.inf).max().double()

    @classmethod
    def total(cls, parts: Iterable["Stats"]) -> "Stats":
        """All parts together."""
        result = cls()
        for part in parts:
            for name, (value, count) in part.sums.items():
                old_value, old_count = result.sums.get(name, (0.0, 0.0))
                result.sums[name] = (value + old_value, count + old_count)
            for name, value in part.maxima.items():
                old = result.maxima.get(name)
                result.maxima[name] = value if old is None else torch.maximum(old, value)
        return result
