"""The models, the questions, and a run of one model in one server; what is finished is kept."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import weightops as wo
from weightops.algebra.loading import load
from weightops.errors import WeightopsError
from weightops.rows.reader import read_rows
from weightops.sorted.prompts import prompt_tokens, row_prompts

HERE = Path(__file__).parent
CONTEXT = 1024
#: Servers, and what runs in each one's environment; transformers runs here.
PROGRAMS = {"transformers": None, "vLLM": "in_vllm.py", "llama.cpp": "in_llama_cpp.py"}
#: What is served: the model, and its draft model.
USES = {"parent": ("parent", ""), "child": ("child", ""), "parent, child drafts": ("parent", "child")}


@dataclass(frozen=True)
class Job:
    """One model in one server.

    Attributes:
        model: What answers.
        draft: Its draft model; empty if it has none.
        prompts: Token ids of each prompt, so that every server reads the same.
        result: File to write.
    """

    model: str
    draft: str
    prompts: list[list[int]]
    max_tokens: int
    draft_tokens: int
    threads: int
    result: str
    context: int = CONTEXT


def prepare(work: Path, model: str, layers: int) -> None:
    """The parent as a folder, and the child that `weightops extract` gives."""
    parent = wo.open(model)
    for name, checkpoint in (("parent", parent), ("child", wo.extract(parent, layers=layers))):
        if not (work / name).exists():
            checkpoint.save(work / name)


def convert(work: Path, python: str, converter: Path) -> None:
    """Both models as GGUF, by llama.cpp's own script."""
    for name in ("parent", "child"):
        out = work / f"{name}.gguf"
        if not out.exists():
            words = [str(converter), str(work / name), "--outtype", "f32", "--outfile", str(out)]
            _run([python, *words], {"PYTHONPATH": str(converter.parent / "gguf-py")})


def prompts(work: Path, questions: Path, count: int) -> list[list[int]]:
    """The first questions of a file, in the parent's chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work / "parent")
    return [prompt_tokens(tokenizer, prompt) for prompt in row_prompts(read_rows([str(questions)]))[:count]]


def measure_all(
    work: Path, pythons: Mapping[str, str], prompts: list[list[int]], max_tokens: int, draft_tokens: int
) -> dict[tuple[str, str], dict[str, Any]]:
    """What each server, run by its Python, makes of each use."""
    results = {}
    for server, python in pythons.items():
        ending = ".gguf" if server == "llama.cpp" else ""
        for use, (answers, drafts) in USES.items():
            model, draft = (str(work / f"{name}{ending}") if name else "" for name in (answers, drafts))
            file = work / f"{server}-{answers}{'-drafted' if drafts else ''}.json"
            job = Job(model, draft, prompts, max_tokens, draft_tokens, os.cpu_count() or 1, str(file))
            results[server, use] = measure(server, python, job)
    return results


def measure(server: str, python: str, job: Job) -> dict[str, Any]:
    """Run a job, unless the same one has been run."""
    result, program = Path(job.result), PROGRAMS[server]
    description = result.with_suffix(".job")
    text = json.dumps(asdict(job))
    if not (result.exists() and description.exists() and description.read_text("utf-8") == text):
        result.unlink(missing_ok=True)
        description.write_text(text, "utf-8")
        if program is None:
            result.write_text(json.dumps(_in_transformers(job), indent=2), "utf-8")
        else:
            _run([python, str(HERE / program), str(description)], {"HF_HUB_OFFLINE": "1"})
    measured: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return measured


def _in_transformers(job: Job) -> dict[str, Any]:
    """As ``in_vllm.py``; with a draft model, transformers' assisted decoding, which does not count what it accepts."""
    import torch

    torch.set_num_threads(job.threads)
    model, tokenizer = load(job.model, "float32")
    more: dict[str, Any] = {"assistant_model": load(job.draft, "float32")[0]} if job.draft else {}
    texts, tokens, start = [], 0, time.perf_counter()
    for ids in job.prompts:
        row = torch.tensor([ids])
        written = model.generate(
            row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=job.max_tokens, **more
        )[0, len(ids) :]
        texts.append(tokenizer.decode(written, skip_special_tokens=True))
        tokens += len(written)
    seconds = time.perf_counter() - start
    return {"texts": texts, "tokens": tokens, "seconds": seconds, "version": f"transformers {version('transformers')}"}


def _run(words: list[str], environment: dict[str, str]) -> None:
    """A program in another environment; its output only where it fails."""
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-20:]
        raise WeightopsError(f"{words[1]}: exit code {done.returncode}", *lines)
