"""The contents of a merge file as frozen dataclasses: mergekit's schema. :mod:`.reading` reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ...errors import WeightopsError
from ...errors import at as placed

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Condition:
    """A value, or a gradient over the layers, for tensors whose name contains ``filter``.

    Attributes:
        value: A scalar, or a tuple of scalars: the points of a gradient.
        filter: Part of a tensor's name; ``None`` and ``*`` stand for every tensor.
        line: Its line in the file.
    """

    value: Scalar | tuple[Scalar, ...]
    filter: str | None = None
    line: int = 0

    @property
    def gradient(self) -> bool:
        return isinstance(self.value, tuple)

    @property
    def covers_all(self) -> bool:
        """Whether the condition applies to every tensor."""
        return self.filter is None or self.filter == "*"

    def covers(self, name: str) -> bool:
        """Whether the condition applies to the tensor of that name."""
        return self.covers_all or str(self.filter) in name


#: The first condition that covers a tensor sets its value.
Setting = tuple[Condition, ...]


@dataclass(frozen=True)
class Parameters:
    """The ``parameters`` of one level of a file, with the line of each key."""

    settings: Mapping[str, Setting] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.settings


@dataclass(frozen=True)
class InputModel:
    """A model that goes into a merge: whole, or ``layer_range`` of its layers (start, end; end not included)."""

    model: str
    layer_range: tuple[int, int] | None = None
    parameters: Parameters = Parameters()
    line: int = 0


@dataclass(frozen=True)
class Slice:
    """Consecutive output layers and the layers they are merged from; each source gives the same number of layers."""

    sources: tuple[InputModel, ...]
    base_model: str | None = None
    parameters: Parameters = Parameters()
    line: int = 0


@dataclass(frozen=True)
class Module:
    """A part of a model (``text_decoder``, ``vision_tower``, a prefix of tensor names) with its own inputs."""

    models: tuple[InputModel, ...] = ()
    slices: tuple[Slice, ...] = ()
    parameters: Parameters = Parameters()
    line: int = 0


@dataclass(frozen=True)
class TokenSource:
    """Where the embedding of one token comes from.

    Attributes:
        kind: ``model`` (that model's row of the same token), ``model_token`` (another row of that model), ``zero``,
            or ``default`` (the rule for tokens without an entry).
        force: Use this row also for models that have the token.
    """

    kind: str = "default"
    model: str | None = None
    token: str | None = None
    token_id: int | None = None
    force: bool = False
    line: int = 0


@dataclass(frozen=True)
class TokenizerConfig:
    """``tokenizer_source`` or ``tokenizer``: ``union``, ``base`` or a model, and the entries for single tokens."""

    source: str = "union"
    tokens: Mapping[str, TokenSource] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None
    line: int = 0


@dataclass(frozen=True)
class Lines:
    """Layer-wise scaling of the result of a method that merges task vectors (LiNeS); it grows from layer to layer.

    Attributes:
        alpha: Scale of the first layer.
        beta: The last layer's scale is alpha + beta.
    """

    alpha: float = 0.5
    beta: float = 0.5


@dataclass(frozen=True)
class MergeConfig:
    """One document of a merge file. Models are the strings the user wrote; :func:`reference` parses them.

    Attributes:
        name: What later documents call the result; ``None`` for the final one.
        notes: What the user should know although it is not a fault, such as keys without effect.
    """

    merge_method: str
    name: str | None = None
    models: tuple[InputModel, ...] = ()
    slices: tuple[Slice, ...] = ()
    modules: Mapping[str, Module] = field(default_factory=dict)
    parameters: Parameters = Parameters()
    base_model: str | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: TokenizerConfig | None = None
    chat_template: str | None = None
    layer_scaling: Lines | None = None
    line: int = 0
    lines: Mapping[str, int] = field(default_factory=dict)
    where: str = "config"
    notes: tuple[str, ...] = ()

    def line_of(self, key: str) -> int:
        """The line of a top-level key, or of the document if the key is absent."""
        return self.lines.get(key, self.line)

    def line_of_group(self, group: Group) -> int:
        """The line of a group: of its slice or its module, or of ``models``."""
        if group.slice is not None:
            return group.slice.line
        return group.module.line if group.module is not None else self.line_of("models")

    def at(self, line: int, problem: str) -> str:
        """A problem, with the file and line in front."""
        return placed(f"{self.where}:{line}", problem)

    def groups(self) -> Iterator[Group]:
        """Each set of inputs that is merged together, in file order."""
        for name, part in (self.modules or {"": Module(self.models, self.slices)}).items():
            module = part if self.modules else None
            if part.models:
                yield Group(name, module, None, part.models, self.base_model)
            for one in part.slices:
                yield Group(name, module, one, one.sources, one.base_model or self.base_model)

    def referenced_models(self) -> tuple[str, ...]:
        """Every model whose weights are read, the base first, each once."""
        models = [self.base_model] if self.base_model else []
        for group in self.groups():
            models += [source.model for source in group.sources]
        return tuple(dict.fromkeys(models))


@dataclass(frozen=True)
class Group:
    """Inputs that are merged together: a module's models, or one output slice.

    Attributes:
        module_name: Key under ``modules``; empty if the file has no modules.
        module: That module, for its parameters.
        slice: The output slice, or ``None`` for the form with ``models``.
        base: The base model of the group.
    """

    module_name: str
    module: Module | None
    slice: Slice | None
    sources: tuple[InputModel, ...]
    base: str | None

    @property
    def inputs(self) -> tuple[InputModel, ...]:
        """The sources; in the form with ``models``, a base that is not listed is added at the end, as in mergekit."""
        if self.slice is None and self.base and self.base not in [source.model for source in self.sources]:
            return (*self.sources, InputModel(self.base))
        return self.sources


@dataclass(frozen=True)
class ModelReference:
    """A model, its revision, and the adapter to add to it."""

    model: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None


def reference(text: str) -> ModelReference:
    """Parse ``org/name@revision+adapter@revision``.

    Raises:
        WeightopsError: more than one ``+``, more than one ``@`` in a part, or an empty part.

    >>> reference("org/base@v2+org/lora")
    ModelReference(model='org/base', revision='v2', adapter='org/lora', adapter_revision=None)
    """
    parts = text.split("+")
    pairs = [part.split("@") for part in parts]
    if len(parts) > 2 or any(len(pair) > 2 or not all(word.strip() for word in pair) for pair in pairs):
        raise WeightopsError(f"cannot read the model {text!r}; write MODEL, MODEL@REVISION or MODEL+ADAPTER")
    model, revision = (*pairs[0], None)[:2]
    adapter, adapter_revision = (*pairs[1], None)[:2] if len(pairs) == 2 else (None, None)
    assert model is not None
    return ModelReference(model, revision, adapter, adapter_revision)
