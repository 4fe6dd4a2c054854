"""The part of bitsandbytes that weightops uses, with rounding to 15 equally spaced levels: for machines without it."""

import sys
from types import ModuleType

import torch


class Params4bit(torch.nn.Parameter):
    """The weight, until it is moved to a device: then codes, two elements a byte, [n / 2, 1]."""

    def __new__(cls, data, requires_grad=False, quant_type="fp4", compress_statistics=True):
        made = torch.Tensor._make_subclass(cls, data, requires_grad)
        made.quant_state = None
        return made

    def to(self, *args, **kwargs):
        if self.quant_state is None:
            self.data, self.quant_state = quantize_4bit(self.data)
        return self


def quantize_4bit(weight):
    scale = weight.abs().max() / 7
    codes = ((weight / scale).round() + 8).to(torch.uint8).reshape(-1, 2)
    return codes[:, :1] * 16 + codes[:, 1:], (scale, weight.shape)


def dequantize_4bit(codes, state):
    scale, shape = state
    return (torch.cat([codes // 16, codes % 16], 1).to(scale) - 8).reshape(shape) * scale


def install(patch):
    """Let programs import these as bitsandbytes."""
    whole, modules, functional = (ModuleType(f"bitsandbytes{end}") for end in ("", ".nn", ".functional"))
    modules.Params4bit, functional.dequantize_4bit = Params4bit, dequantize_4bit
    for module in (whole, modules, functional):
        patch.setitem(sys.modules, module.__name__, module)
