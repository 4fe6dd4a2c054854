"""One way to train, in a process: answers each line on stdin with a JSON value. Run as ``sparse_child.py SIZE WAY``.

``begin`` makes the model and runs two steps; ``step`` runs one ordinary training step and answers its seconds; ``end``
measures memory and exchanges.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

DENSITY, EVERY, PHASE = 0.005, 20, 5
ROUNDS = {"layer": 5, "model": 2}
SIDE, TOKENS = 2048, 1024


def layer() -> tuple[Any, Callable[[Any], Any]]:
    """A model of one layer, and its loss; the inputs need a gradient, as inside a model."""
    model = torch.nn.Sequential()
    model.add_module("proj", torch.nn.Linear(SIDE, SIDE, bias=False))
    inputs, gradient = torch.randn(TOKENS, SIDE, requires_grad=True), torch.randn(TOKENS, SIDE)

    def loss(trained: Any) -> Any:
        inputs.grad = None
        return (trained(inputs) * gradient).sum()

    return model, loss


def model() -> tuple[Any, Callable[[Any], Any]]:
    """A Llama of SmolLM2-135M's shape with random weights, and its loss on random tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    tokens = torch.randint(config.vocab_size, (4, 128))
    return LlamaForCausalLM(config), lambda trained: trained(input_ids=tokens, labels=tokens).loss


def prepared(built: Any, way: str) -> tuple[Any, Any]:
    """The model made ready by a way, and its optimizer."""
    linear = [m for n, m in built.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]
    shapes = [module.weight.shape for module in linear]
    budget = int(DENSITY * sum(p.numel() for p in built.parameters()))
    rank = max(1, round(budget / sum(rows + columns for rows, columns in shapes)))
    if way in ("ag", "ma"):
        return built, _sparse(built, way, budget)
    if way != "full":
        built = _peft(built, way, rank, budget / sum(rows * columns for rows, columns in shapes))
    return built, torch.optim.AdamW([p for p in built.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)


def _sparse(built: Any, way: str, budget: int) -> Any:
    from weightops.recipes.sparsity.entry_budget import entries_by_layer, replace_layers
    from weightops.recipes.sparsity.entry_optimizer import EntryOptimizer, EntrySelection
    from weightops.recipes.sparsity.entry_rules import EntryAdam, EntrySm3
    from weightops.recipes.sparsity.regrowth import Regrowth

    layers = {n: m for n, m in built.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n}
    layers = replace_layers(built, entries_by_layer(built, layers, DENSITY))
    selection = EntrySelection(way, Regrowth(EVERY, PHASE, 0.2, "linear", 100_000))  # type: ignore[arg-type]
    return EntryOptimizer(layers, EntrySm3() if way == "ma" else EntryAdam(), selection, 1e-4)


def _peft(built: Any, way: str, rank: int, share: float) -> Any:
    import peft

    targets = r".*proj"
    configs = {
        "lora": lambda: peft.LoraConfig(r=rank, target_modules=targets),
        "shira": lambda: peft.ShiraConfig(r=rank, target_modules=targets, random_seed=0),
        "supertuning": lambda: peft.SupertuningConfig(sparsity=1 - share, target_modules=targets),
    }
    return peft.get_peft_model(built, configs[way]())


class Memory:
    """The peak of this process's anonymous memory beyond what it has now, by the kernel's own mark."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # begins the mark anew
        self.before = _memory("RssAnon")

    def peak(self) -> int:
        """Bytes. The mark also counts pages of files, which only become more."""
        return _memory("VmHWM") - _memory("RssFile") - self.before


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def main(size: str, way: str) -> None:
    import peft  # noqa: F401  # here, so that only its own work is measured

    sys.stdin.readline()
    torch.manual_seed(0)
    built, loss = {"layer": layer, "model": model}[size]()
    loss(built).detach()  # what any forward pass needs once
    memory = Memory()
    trained, optimizer = prepared(built, way)
    trained.train()

    def step() -> float:
        begin = time.perf_counter()
        loss(trained).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - begin

    counter = _steps(step, getattr(optimizer, "selection", None))
    next(counter), next(counter)
    peak = memory.peak()
    entries = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    _say("ready")
    for line in sys.stdin:
        if line.strip() == "step":
            _say(next(counter))
            continue
        exchange = _exchange(step, optimizer, way, ROUNDS[size]) if way in ("ag", "ma") else 0.0
        _say({"peak": peak, "entries": entries, "exchange": exchange})
        return


def _steps(step: Callable[[], float], selection: Any) -> Iterator[float]:
    """Ordinary steps: those of a phase are not among them."""
    taken = 0
    while True:
        taken += 1
        seconds = step()
        regrowth = getattr(selection, "regrowth", None)
        if regrowth is None or not (regrowth.gathers(taken) or regrowth.exchanges(taken)):
            yield seconds


def _exchange(step: Callable[[], float], optimizer: Any, way: str, rounds: int) -> float:
    """What the steps of a phase, exchange included, take beyond as many ordinary steps: the median of some rounds."""
    gathering = PHASE if way == "ag" else 1
    return max(0.0, statistics.median(_one_exchange(step, optimizer, gathering) for _ in range(rounds)))


def _one_exchange(step: Callable[[], float], optimizer: Any, gathering: int) -> float:
    optimizer.steps = EVERY + PHASE - gathering - 1  # the next step is the last before a phase
    step()
    phase = [step() for _ in range(gathering)]
    ordinary = statistics.median(step() for _ in range(PHASE))
    return sum(phase) - gathering * ordinary


def _say(value: Any) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
