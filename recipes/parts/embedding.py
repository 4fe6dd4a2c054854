"""Embeddings of texts: the last hidden states of any model of transformers, averaged over the tokens of the text.

They are kept in the user's cache by the content of the text, batch by batch, so that a run that was killed resumes and
the same texts are never embedded twice.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from weightops.algebra.opening import as_checkpoint
from weightops.errors import WeightopsError
from weightops.io.cache import cache_folder, entry_name, stamp
from weightops.io.progress import Progress
from weightops.io.quiet import quiet_transformers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION = 1
"""Of how embeddings are computed; others are computed again."""
_BATCH_TOKENS, _BATCH_TEXTS = 8192, 64
_SHIFTED = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Models whose positions begin after that of the padding token, so that two of them are no use."""


@dataclass(frozen=True)
class Encoder:
    """A model that embeds.

    Attributes:
        spec: Its name, for messages.
        model: Of transformers, in fp32, on its device.
        tokenizer: Its tokenizer.
        context: Most tokens of a text; none where the model states no limit.
    """

    spec: str
    model: Any
    tokenizer: Any
    context: int | None

    def token_ids(self, text: str) -> list[int]:
        """The whole text as token ids, with the tokens that the model expects at its ends."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The mean of the last hidden states over each text's tokens, [texts, width], of length 1.

        Raises:
            WeightopsError: a vector that is not finite.
        """
        import numpy as np
        import torch

        inputs = self.tokenizer(
            list(texts), truncation=self.context is not None, max_length=self.context, padding=True,
            return_tensors="pt", verbose=False,
        ).to(self.model.device)  # fmt: skip
        with torch.no_grad():
            mask = inputs["attention_mask"]
            states = self.model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state.float()
            weights = mask[..., None].to(states)
            means = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
            embeddings = torch.nn.functional.normalize(means, dim=-1).cpu().numpy()
        if not np.isfinite(embeddings).all():
            raise WeightopsError(f"{self.spec}: its embeddings are not numbers; choose another encoder")
        return np.asarray(embeddings, np.float32)


def embed(spec: str, texts: Sequence[str], tell: Callable[[str], object]) -> NDArray[np.float32]:
    """Embeddings of texts, [texts, width], fp32, of length 1.

    A text longer than the encoder reads is cut at its end; their number is reported.

    Args:
        spec: A model: a folder, ``org/name``, an alias. An encoder, or a causal model whose last hidden state is taken.
        texts: What to embed.
        tell: Is told of texts that are cut.

    Raises:
        WeightopsError: a model that transformers cannot load, embeddings that are not numbers, or a cache that cannot
            be used.
    """
    import numpy as np

    encoder, cache = open_encoder(spec)
    lengths = [len(encoder.token_ids(text)) for text in texts]
    if encoder.context is not None and (longer := sum(length > encoder.context for length in lengths)):
        tell(
            f"{longer} of {len(texts)} texts are longer than the {encoder.context} tokens that {spec} reads; of these "
            "only the beginning was embedded"
        )
    first = dict(zip(texts, lengths, strict=True))
    with _opened(cache) as store:
        known = _kept(store, first, encoder.model.config)
        with Progress(len(first), f"embedding with {spec}", unit="text", begun=len(known)) as progress:
            for batch in _batches(first, encoder.context):
                if all(text in known for text in batch):
                    continue
                new = sum(text not in known for text in batch)
                made = dict(zip(batch, encoder.vectors(batch), strict=True))
                store.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", _records(made))
                store.commit()
                known |= made
                progress.update(new)
    return np.stack([known[text] for text in texts])


def open_encoder(spec: str) -> tuple[Encoder, Path]:
    """An encoder, and the file that keeps its embeddings.

    Raises:
        WeightopsError: no such model, one with an adapter, or one that transformers cannot load.
    """
    checkpoint = as_checkpoint(spec)
    folder = checkpoint.source.folder
    if folder is None or checkpoint.delta.changes:
        raise WeightopsError(f"{spec}: an encoder is a model's folder; write the model first, if it has an adapter")
    import torch

    with quiet_transformers():
        from transformers import AutoModel, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
            model: Any = AutoModel.from_pretrained(str(folder), dtype=torch.float32).eval()
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise WeightopsError(f"{spec}: transformers cannot load it ({reason}); check the folder") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    config = model.config
    model = model.get_encoder() if config.is_encoder_decoder else model
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors", ".txt", ".model"))
    name = entry_name(Path(spec).name, stamp(files, VERSION))
    encoder = Encoder(spec, model.to(device), tokenizer, _context(tokenizer, config))
    return encoder, cache_folder() / "embeddings" / f"{name}.sqlite"


def _context(tokenizer: Any, config: Any) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in _SHIFTED:
        positions -= 2
    limits = [limit for limit in (tokenizer.model_max_length, positions) if limit and limit < 10**9]
    return min(limits, default=None)


def _batches(lengths: Mapping[str, int], context: int | None) -> Iterator[list[str]]:
    """Texts of like length together. What is in a batch depends on the texts alone, not on what the cache holds."""
    batch: list[str] = []
    for text in sorted(lengths, key=lambda text: (lengths[text], text)):
        longest = min(lengths[text], context or lengths[text])
        if batch and (len(batch) == _BATCH_TEXTS or longest * (len(batch) + 1) > _BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, timeout=60)) as store:
            store.execute("CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
            yield store
    except sqlite3.Error as error:
        raise WeightopsError(
            f"{file}: the cache of embeddings cannot be used ({error}); remove the file, or set WEIGHTOPS_CACHE to "
            "another folder"
        ) from error


def _kept(store: sqlite3.Connection, texts: Mapping[str, int], config: Any) -> dict[str, NDArray[np.float32]]:
    """What the cache has of these texts; a vector of another size, or that is no number, is left out."""
    import numpy as np

    size = 4 * config.get_text_config().hidden_size
    known: dict[str, NDArray[np.float32]] = {}
    for text in texts:
        row = store.execute("SELECT vector FROM vectors WHERE text = ?", (_key(text),)).fetchone()
        if row is not None and isinstance(row[0], bytes) and len(row[0]) == size:
            vector = np.frombuffer(row[0], "<f4")
            if np.isfinite(vector).all():
                known[text] = vector
    return known


def _records(vectors: Mapping[str, NDArray[np.float32]]) -> list[tuple[bytes, bytes]]:
    return [(_key(text), vector.astype("<f4").tobytes()) for text, vector in vectors.items()]


def _key(text: str) -> bytes:
    return blake3(text.encode()).digest()
