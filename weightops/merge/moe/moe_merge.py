"""A mixture of experts made of dense models, as a value: what it reads and writes, its problems, and the writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ... import dtypes
from ...algebra.checkpoint import Checkpoint, sources
from ...algebra.opening import open_all
from ...engine.plan import DEFAULT_MEMORY, DEFAULT_SHARD, Plan, make_plan
from ...engine.torch_threads import one_torch_thread
from ...errors import WeightopsError
from ...layerwise.layered_model import LayeredModel
from ...output.modelcard import Card, code, fenced
from ...output.save import Package, Prepared, Saved, prepare
from ..tokens.model_tokens import embedding_rows
from .dense_models import DenseModel, expert_problems
from .gates import Floats, RoutingPrompt, drawn_rows, embedding_rows_of, hidden_rows_of, read_prompts, similar_rows
from .moe_config import moe_config
from .moe_file import MoeExpert, MoeFile
from .moe_jobs import MoeJobs, Routers
from .moe_layouts import MoeLayout, choose_layout

_CONFIG_FILE: Final = "mergekit_moe_config.yml"


def plan_moe(
    file: MoeFile,
    *,
    seed: int = 0,
    device: str = "cpu",
    shard_size: int = DEFAULT_SHARD,
    allow_nonfinite: bool = False,
    trust_remote_code: bool = False,
    command: str | None = None,
) -> MoeMerge:
    """Plan a mixture of experts from headers, configs and the tokenizer; no weights are read.

    Args:
        file: What :func:`.moe_file.read_moe` read.
        seed: Draws random routers and noise.
        device: Where the base runs, a layer at a time, for routers from hidden states.
        shard_size: Most bytes in a file.
        allow_nonfinite: Write NaN and Inf instead of refusing them.
        trust_remote_code: Run the Python code in a model's folder, if the model needs it.
        command: The command line, for the model card.

    Raises:
        WeightopsError: a model cannot be opened, no architecture fits, the experts differ in shape or depth, or a
            prompt cannot be read.
    """
    opened = open_all(file.models)
    layout = choose_layout(file, [str(model.source.config.get("model_type")) for model in opened])
    models = {name: DenseModel(model) for name, model in zip(file.models, opened, strict=True)}
    if problems := expert_problems(file, layout, models):
        raise WeightopsError(*problems)
    base, gated = models[file.base].checkpoint, _gated(file, layout)
    prompts = [] if file.drawn else read_prompts(base, gated, trust_remote_code=trust_remote_code)
    from_states = not file.drawn and file.gate_mode != "cheap_embed"
    layered = LayeredModel(base, device=device, trust_remote_code=trust_remote_code) if from_states else None
    jobs = MoeJobs(file, layout, models, _dtype(file, base), seed, Routers())
    plan = make_plan(
        jobs.all(),
        {"kind": "mixture of experts", "config": file.text, "architecture": layout.name, "seed": seed},
        notes=[*file.notes, *_notes(file, layout, models)],
        shard_size=shard_size,
        allow_nonfinite=allow_nonfinite,
    )
    return MoeMerge(jobs, plan, len(gated), tuple(prompts), layered, command)


@dataclass(frozen=True, eq=False)
class MoeMerge:
    """A planned mixture of experts.

    Attributes:
        jobs: What is made of which model.
        rows: Rows of each router: the experts, and a shared expert that has a gate.
        prompts: For routers from prompts.
        layered: The base, for routers from hidden states.
        command: The command line, for the model card.
    """

    jobs: MoeJobs
    plan: Plan
    rows: int
    prompts: tuple[RoutingPrompt, ...] = ()
    layered: LayeredModel | None = None
    command: str | None = None

    def package(self) -> Package:
        """The files beside the weights: the base's, with the configuration of the output's architecture.

        Raises:
            WeightopsError: transformers cannot read the base's configuration.
        """
        file, layout, models = self.jobs.file, self.jobs.layout, self.jobs.models
        base = models[file.base].checkpoint
        named = ", ".join(code(expert.model) for expert in file.experts)
        card = Card(
            f"A mixture of experts ({layout.name})",
            f"{layout.name} whose experts are the feed-forward blocks of {named}; everything else is from "
            f"{code(file.base)}. Made as this file says:\n\n" + fenced(file.text.strip(), "yaml"),
            tags=("moe",),
            command=self.command,
        )
        return Package(
            model=replace(base.source, config=moe_config(self.jobs)),
            sources=tuple(dict.fromkeys(one for model in models.values() for one in sources(model.checkpoint))),
            card=card,
            files={_CONFIG_FILE: file.text.encode()},
        )

    def prepared(self, out: Path, *, overwrite: bool = False) -> Prepared:
        """The plan with its place, and every problem of both."""
        return prepare(self.plan, self.package(), out, overwrite=overwrite)

    def write(
        self,
        prepared: Prepared,
        *,
        threads: int | None = None,
        memory: int = DEFAULT_MEMORY,
        progress: bool = True,
        tell: Callable[[str], None] = lambda note: None,
    ) -> Saved:
        """Make the routers, then write the output; a killed run resumes, but makes the routers again.

        Args:
            memory: Most bytes of buffers, and of hidden states in memory.
            tell: Called with a note if the routers cannot tell some experts apart.

        Raises:
            WeightopsError: the problems, or a failure on the way.
        """
        if prepared.problems:
            raise WeightopsError(*prepared.problems)
        rows = self.jobs.routers.rows = self._router_rows(memory, progress)
        if not self.jobs.file.drawn and (similar := similar_rows(rows)):
            layers = f"{len(similar)} of {len(rows)} layers, first layer {similar[0]}"
            tell(f"in {layers}, the prompts of some experts lead to almost the same row of the router, so some experts "
                 "will get few tokens; choose prompts that differ more")  # fmt: skip
        with one_torch_thread():
            return prepared.write(threads=threads, memory=memory, progress=progress)

    def _router_rows(self, memory: int, progress: bool) -> list[Floats]:
        """The rows of each layer's router."""
        base, mode = self.jobs.base, self.jobs.file.gate_mode
        if self.layered is not None:
            return hidden_rows_of(self.layered, self.prompts, self.rows, mode=mode, kept=memory, progress=progress)
        if self.prompts:
            return [embedding_rows_of(base.checkpoint, self.prompts, self.rows)] * base.layers
        return [drawn_rows(mode, name, self.rows, base.widths[1], self.jobs.seed) for name in self.jobs.router_names]


def _gated(file: MoeFile, layout: MoeLayout) -> tuple[MoeExpert, ...]:
    """The experts that need a row: a shared expert only where its architecture has a gate for it."""
    return (*file.experts, *(file.shared if layout.shared_gate else ()))


def _dtype(file: MoeFile, base: Checkpoint) -> str:
    """The dtype that the file names, else the one that the base's config names, else that of the base's weights."""
    config = base.source.config
    named = file.dtype or config.get("dtype") or config.get("torch_dtype")
    stored = next(tensor.dtype for tensor in base.source.tensors.values() if tensor.dtype in dtypes.FLOATS)
    return dtypes.FROM_TORCH.get(str(named), stored)


def _notes(file: MoeFile, layout: MoeLayout, models: Mapping[str, DenseModel]) -> list[str]:
    notes = [f"the output is a {layout.name} of {len(file.experts)} experts"]
    experts = [models[expert.model].checkpoint for expert in file.experts]
    if len(file.experts) & (len(file.experts) - 1):
        notes.append(f"llama.cpp reads only models whose number of experts is a power of two, not {len(file.experts)}")
    if len(experts) > 1 and all(one.source == experts[0].source and one.delta == experts[0].delta for one in experts):
        notes.append("all experts are the same model, so the output equals that model until it is trained")
    rows = {name: embedding_rows(model.checkpoint.source) for name, model in models.items()}
    notes += [
        f"{name} has a vocabulary of {count} tokens, the base {rows[file.base]}; its expert gets the base's tokens"
        for name, count in rows.items()
        if count != rows[file.base]
    ]
    config = models[file.base].checkpoint.source.config
    if layout.settings.get("sliding_window", 0) is None and config.get("sliding_window"):
        notes.append(f"the output reads all earlier tokens, the base only the last {config['sliding_window']}")
    if layout.model_type == "deepseek":
        notes.append("transformers loads this architecture with code from the hub: trust_remote_code=True")
    return notes
