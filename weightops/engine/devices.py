"""Whether a device that the user names can be used."""

from __future__ import annotations


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
