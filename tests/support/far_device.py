"""A second device that is not there: torch as it behaves with a GPU, where tensors of two devices do not mix."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

FAR = torch.device("cuda", 0)
_LEAVES = ("tolist", "item", "__bool__", "__int__", "__float__", "__len__", "__index__")


class FarDevice(TorchFunctionMode):
    """While it is entered, tensors made with :func:`far`, and all that is computed from them, say they are on ``FAR``.

    An operation on tensors of both places raises as CUDA does, unless the near one is a single number.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if getattr(func, "__self__", None) is torch.Tensor.device:
            return FAR if is_far(args[0]) else torch.device("cpu")
        if name == "cpu":
            return func(*args, **kwargs).clone()
        moved = _device_asked_for(name, args, kwargs)
        if moved is not None:
            args, kwargs = _without_device(args), {k: v for k, v in kwargs.items() if k != "device"}
            made = func(*args, **kwargs) if len(args) > (name == "to") or kwargs else args[0]
            return far(made) if moved == FAR else made.clone()
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
        if name == "numpy" and is_far(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        there = [is_far(tensor) for tensor in tensors]
        if any(there) and any(not f and t.dim() for f, t in zip(there, tensors, strict=True)):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu")
        result = func(*args, **kwargs)
        if any(there) and name not in _LEAVES:
            for leaf in tree_flatten(result)[0]:
                if isinstance(leaf, torch.Tensor):
                    leaf.is_far = True  # type: ignore[attr-defined]
        return result


def far(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, on the device that is not there."""
    with torch._C.DisableTorchFunction():
        copy = tensor.clone()
    copy.is_far = True  # type: ignore[attr-defined]
    return copy


def is_far(tensor: torch.Tensor) -> bool:
    """Whether a tensor says that it is on that device."""
    return getattr(tensor, "is_far", False)


def _device_asked_for(name: str, args: Any, kwargs: Any) -> torch.device | None:
    if "device" in kwargs and kwargs["device"] is not None:
        return torch.device(kwargs["device"])
    if name == "to":
        for one in args[1:]:
            if isinstance(one, torch.device):
                return one
            if isinstance(one, torch.Tensor):
                return FAR if is_far(one) else torch.device("cpu")
    return None


def _without_device(args: Any) -> Any:
    return tuple(one for one in args if not isinstance(one, torch.device))
