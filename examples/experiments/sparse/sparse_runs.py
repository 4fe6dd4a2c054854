"""The runs: rates chosen on a held-out quarter, then a training for each way and seed, measured on test rows."""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightops.recipes.floor.checking import read_settings
from weightops.recipes.routines import sft

from .ways import Way

BASE = "smollm2-135m-instruct"
TOKENS = 256
_FINAL = re.compile(r"####\s*(-?[\d,.]+)")


def prepare(data: Path, work: Path, rows: int, tests: int) -> None:
    """Write the training and test rows, drawn once for all ways and seeds."""
    work.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", rows), ("test", tests)):
        out = work / f"{name}.jsonl"
        if not out.exists():
            with gzip.open(data / "math_gsm8k" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
                every = [json.loads(line) for line in stream]
            chosen = random.Random(0).sample(every, count)
            lines = [json.dumps({"prompt": r["question"], "completion": r["answer"]}) for r in chosen]
            out.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def choose_rate(work: Path, way: Way, epochs: int) -> float:
    """The rate of least loss on a held-out quarter of the training rows, by seed 0."""
    losses = {}
    for rate in way.rates:
        record = work / "rates" / f"{way.name}-{rate:g}.json"
        if not record.exists():
            out = work / "rates" / f"{way.name}-{rate:g}"
            done = sft.run(_recipe(work, way, rate, epochs, seed=0, held_out=0.25), out, overwrite=True)
            record.write_text(json.dumps(done.measured["loss"]), "utf-8")
            shutil.rmtree(out)
        losses[rate] = json.loads(record.read_text("utf-8"))
    return min(losses, key=lambda rate: losses[rate])


def run(work: Path, way: Way, seed: int, epochs: int, answers: int) -> dict[str, Any]:
    """One training and what it measures; kept where an earlier call finished it."""
    record = work / "runs" / f"{way.name}-{seed}.json"
    if not record.exists():
        rate, out = choose_rate(work, way, epochs), work / "runs" / f"{way.name}-{seed}"
        if not out.exists():
            sft.run(_recipe(work, way, rate, epochs, seed, held_out=0.0), out)
        model = str(out) if way.name == "full" else f"{BASE}+{out}"
        record.write_text(json.dumps({"rate": rate, **measure(model, work, answers)}), "utf-8")
    result: dict[str, Any] = json.loads(record.read_text("utf-8"))
    return result


def measure(model: str, work: Path, answers: int) -> dict[str, float]:
    """The loss on all test rows, and the share of right answers to the first of them."""
    from weightops.algebra.loading import load
    from weightops.recipes.data.encode import encode
    from weightops.recipes.data.source import load_rows
    from weightops.recipes.floor import trainer
    from weightops.recipes.floor.settings import Data
    from weightops.recipes.objectives.next_token import NextToken

    loaded, tokenizer = load(model, "float32")
    rows = load_rows(Data(files=(str(work / "test.jsonl"),)))
    encoded = encode(tokenizer, rows, TOKENS, chat=True)
    objective = NextToken().ready(loaded, tokenizer, encoded)
    loss = trainer.measure(loaded, encoded, objective, 8)["loss"]
    texts = [json.loads(line) for line in (work / "test.jsonl").read_text("utf-8").splitlines()[:answers]]
    right = sum(_answer(loaded, tokenizer, text["prompt"]) == _number(text["completion"]) for text in texts)
    return {"loss": loss, "right": right, "asked": len(texts)}


def _recipe(work: Path, way: Way, rate: float, epochs: int, seed: int, held_out: float) -> sft.SftRecipe:
    training = {"lr": rate, "epochs": epochs, "batch": 16, "warmup": 0.03, "precision": "fp32", "seed": seed,
                "update": way.update}  # fmt: skip
    data = {"files": [str(work / "train.jsonl")], "held_out": held_out}
    recipe, faults = read_settings(sft.SftRecipe, {"base": BASE, "data": data, "tokens": TOKENS, "training": training})
    assert not faults, faults
    assert isinstance(recipe, sft.SftRecipe)
    return recipe


def _answer(model: Any, tokenizer: Any, question: str) -> str | None:
    """The number that the model's greedy answer ends in."""
    messages = [{"role": "user", "content": question}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**asked, max_new_tokens=200, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return _number(tokenizer.decode(made[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))


def _number(text: str) -> str | None:
    match = _FINAL.search(text)
    return None if match is None else match[1].replace(",", "").rstrip(".")


def results(work: Path, ways: Sequence[Way], seeds: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """What was measured so far, by way; a seed that is not finished is missing."""
    files = {way.name: [work / "runs" / f"{way.name}-{seed}.json" for seed in seeds] for way in ways}
    return {name: [json.loads(f.read_text("utf-8")) for f in each if f.exists()] for name, each in files.items()}
