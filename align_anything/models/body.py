"""Models whose body is no module of its own."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any


class BodyWithin:
    """Marks an Accustomed class that computes hidden states in a method: transformers has one class for all of it."""

    @abstractmethod
    def body(self, **inputs: Any) -> Any:
        """Returns what the base model of other families returns for the model's inputs, with `last_hidden_state`."""
