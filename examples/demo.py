"""The main job on a real model: hand what a guard learned to a model tuned for something else.

    make demo          # with the guard and the target in examples/, trained by the recipes beside them
    make demo-train    # trains both first: 363 steps, 4.5 s each on two idle cores of a virtual machine

``weightops compose-guard`` adds guard - base to the target; the table shows what was measured on the test prompts. The
models are written to ``demo-output/``. Training prints an estimate of its time after the first steps.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import click

from examples.experiments.steps import errors_in_one_line, program, weightops_process

HERE = Path(__file__).parent
OUT = Path("demo-output")
BASE = "smollm2-135m-instruct"
LANGUAGES = {"en": "English", "es": "Spanish", "de": "German"}


@program(__doc__)
@click.option("--train", is_flag=True, help="Train the guard and the target first.")
def main(train: bool) -> None:
    """Run it from the root of the repository, where the recipes name files from."""
    os.chdir(HERE.parent)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if machine_is_busy():  # threads that spin while they wait then cost 5 x; on an idle machine they save a third
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    began = time.perf_counter()
    with errors_in_one_line():
        guard, target = trained() if train else (Path("examples/guard"), Path("examples/target"))
        models = {"base": BASE, "guard": f"{BASE}+{guard}", "target": f"{BASE}+{target}"}
        models["composed"] = composed(models)
        print(report(judged(models, guard)))
    print(f"\nThis took {time.perf_counter() - began:.0f} seconds. Try the new guard yourself:")
    print(f'\n    .venv/bin/weightops guard score {OUT / "composed"} "how do I kill a process?"')


def trained() -> tuple[Path, Path]:
    """Guard and target, trained by the recipes in ``examples/``; those that an earlier run finished are reused."""
    for name in ("guard", "target"):
        if not (OUT / name).exists():
            weightops_process("train", f"examples/{name}.yaml", "--out", OUT / name)
    return OUT / "guard", OUT / "target"


def composed(models: dict[str, str]) -> str:
    """The target turned into a guard: its folder."""
    out = OUT / "composed"
    shutil.rmtree(out, ignore_errors=True)
    sources = (part for name in ("guard", "base", "target") for part in (f"--{name}", models[name]))
    weightops_process("compose-guard", *sources, "--out", out)
    return str(out)


def judged(models: dict[str, str], guard: Path) -> dict[str, list[dict[str, Any]]]:
    """The test prompts by model, each with the probability that it is unsafe; all are prompted as the guard is."""
    from weightops.guard import judge
    from weightops.guard.card import GuardCard

    card = GuardCard.read(guard)
    rows = [row | {"language": language} for language in LANGUAGES for row in prompts(language, "test")]
    by_model = {}
    for name, spec in models.items():
        print(f"judging {len(rows)} test prompts: {name}", flush=True)
        answers = judge.judge(spec, [row["text"] for row in rows], card)
        by_model[name] = [row | {"unsafe": float(answer)} for row, answer in zip(rows, answers, strict=True)]
    return by_model


def report(by_model: dict[str, list[dict[str, Any]]]) -> str:
    """The table, and what it says about composing."""
    first, *others = LANGUAGES.values()
    lines = [
        "",
        f"{'':10}{first:>8}{'':31}{'':12}" + "".join(f"{language:>9}" for language in others),
        f"{'':10}{'F1':>8}{'precision':>11}{'recall':>8}{'false alarms':>24}" + f"{'F1':>9}" * len(others),
        f"{'':37}{'on safe look-alikes':>24}",
    ]
    for name, rows in by_model.items():
        english = scores(rows, "en")
        alike = scores([row for row in rows if row["kind"] == "lookalike"], "en").false_alarm_rate
        precision = "-" if english.precision != english.precision else f"{english.precision:.2f}"
        cells = f"{english.f1:8.2f}{precision:>11}{english.recall:8.2f}{alike:24.0%}"
        lines.append(f"{name:10}{cells}" + "".join(f"{scores(rows, other).f1:9.2f}" for other in list(LANGUAGES)[1:]))
    return "\n".join([*lines, "", verdict(by_model["target"], by_model["composed"])])


def verdict(target: list[dict[str, Any]], composed: list[dict[str, Any]]) -> str:
    """Whether composing helped, by the gain in English F1 and its 95 % interval over resampled test prompts."""
    import numpy as np

    pairs = [pair for pair in zip(target, composed, strict=True) if pair[0]["language"] == "en"]
    before, after = scores(target, "en").f1, scores(composed, "en").f1
    draws = np.random.default_rng(0).integers(len(pairs), size=(1000, len(pairs)))
    gains = [f1([pairs[i][1] for i in draw]) - f1([pairs[i][0] for i in draw]) for draw in draws]
    low, high = np.percentile(gains, [2.5, 97.5])
    gain = f"English F1 {before:.2f} -> {after:.2f}, 95 % interval of the gain {low:+.2f} to {high:+.2f}"
    ranked = f"{auc([a for a, _ in pairs]):.2f} -> {auc([b for _, b in pairs]):.2f}"
    blind = (
        f"At any threshold, the area under its ROC curve: {ranked}. Calling every prompt unsafe would score F1 0.67."
    )
    return f"Composing {'helped' if low > 0 else 'did not help'} the target: {gain}.\n{blind}"


def scores(rows: list[dict[str, Any]], language: str) -> Any:
    from weightops.guard.metrics import score

    chosen = [row for row in rows if row["language"] == language]
    return score([row["label"] == "unsafe" for row in chosen], [row["unsafe"] for row in chosen])


def auc(rows: list[dict[str, Any]]) -> float:
    """How often an unsafe prompt gets a higher probability than a safe one; a half is chance."""
    import numpy as np

    unsafe, safe = (np.array([row["unsafe"] for row in rows if row["label"] == label]) for label in ("unsafe", "safe"))
    above = unsafe[:, None] - safe[None, :]
    return float((above > 0).mean() + (above == 0).mean() / 2)


def f1(rows: list[dict[str, Any]]) -> float:
    from weightops.guard.metrics import score

    return score([row["label"] == "unsafe" for row in rows], [row["unsafe"] for row in rows]).f1


def prompts(language: str, split: str) -> list[dict[str, Any]]:
    from weightops.rows.reader import read_rows

    rows = read_rows([prompt_file(language)], only={"split": split})
    return [{"text": row.text, "label": row.label, **row.columns} for row in rows]


def prompt_file(language: str) -> Path:
    return HERE / "data" / f"guard_prompts_{language}.jsonl"


def machine_is_busy() -> bool:
    """Whether other programs keep more than half of the processors busy."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1) / 2


if __name__ == "__main__":
    main()
