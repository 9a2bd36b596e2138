"""Count what torch does in a call: its operations, and what they allocate and touch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operations(TorchDispatchMode):
    """Count every operation inside `with`. Views are not counted: they compute nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.touched_bytes = 0  # tensors read and tensors written
        self.largest_bytes = 0  # the largest new tensor

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        held = {x.untyped_storage().data_ptr() for x in given}
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        new = [x for x in made if x.untyped_storage().data_ptr() not in held]
        if new:
            self.number += 1
            self.touched_bytes += sum(x.nbytes for x in (*given, *new))
            self.largest_bytes = max(self.largest_bytes, *(x.nbytes for x in new))
        return result


@torch.no_grad()  # and not inference_mode: there an operation made of others counts as one
def operations_of(call: Callable[[], object]) -> Operations:
    """Run the call, and return what it did."""
    with Operations() as seen:
        call()
    return seen
