"""Runs in an environment of its own that has xllamacpp: ``python in_llama_cpp.py JOB.json``, as ``in_vllm.py`` does."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xllamacpp


def main(job: dict[str, Any]) -> None:
    """Answer the prompts one after the other, greedily, with llama.cpp's own server, without its HTTP."""
    server = xllamacpp.Server(_parameters(job))
    wanted = {"n_predict": job["max_tokens"], "temperature": 0.0, "cache_prompt": False, "seed": 0}
    server.handle_completions({**wanted, "prompt": job["prompts"][0]})  # the first one is slower
    answers = [server.handle_completions({**wanted, "prompt": ids}) for ids in job["prompts"]]
    times = [answer["timings"] for answer in answers]
    result = {
        "texts": [answer["choices"][0]["text"] for answer in answers],
        "tokens": sum(answer["usage"]["completion_tokens"] for answer in answers),
        "seconds": sum(each["prompt_ms"] + each["predicted_ms"] for each in times) / 1000,
        "drafted": sum(each.get("draft_n", 0) for each in times),
        "accepted": sum(each.get("draft_n_accepted", 0) for each in times),
        "version": f"xllamacpp {version('xllamacpp')}",
    }
    Path(job["result"]).write_text(json.dumps(result, indent=2), "utf-8")


def _parameters(job: dict[str, Any]) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = job["model"], job["context"], 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = job["threads"]
    if job["draft"]:
        speculative = parameters.speculative
        speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        speculative.draft.mparams.path, speculative.draft.n_max = job["draft"], job["draft_tokens"]
        speculative.draft.cpuparams.n_threads = job["threads"]
    return parameters


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text("utf-8")))
