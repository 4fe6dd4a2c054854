"""The device that the user names, and whether it can be used."""

from __future__ import annotations


def named_device(device: str) -> str:
    """A device by its torch name: ``auto`` is ``cuda`` where there is one, else ``cpu``."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_problems(device: str) -> list[str]:
    """The problem line of a device that torch cannot compute on; it is tried with one number."""
    if device == "cpu":
        return []
    import torch

    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        return [f"the device {device!r} cannot be used: {str(error).splitlines()[0]}; use the CPU or another device"]
    return []
