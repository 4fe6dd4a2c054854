"""The main job on a real model: train a guard, then hand what it learned to a model tuned for something else.

    make demo

The guard comes from SmolLM2-135M-Instruct and the prompts in ``examples/data``, the target from the same base and
Python's own documentation and library; ``weightops compose-guard`` adds guard - base to the target. The table is what
was measured on the test prompts. The models land in ``demo-output/``; a second run takes what is there, unless the
data, the settings or the code behind it have changed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE.parent / "demo-output"
ALIAS = "smollm2-135m-instruct"
LANGUAGES = {"en": "English", "es": "Spanish", "de": "German"}
GUARD = {"lr": 1e-4, "epochs": 2, "batch": 8, "seed": 0}
TARGET = {"lr": 1e-4, "epochs": 1, "batch": 8, "seed": 0}
SCALE = 1.0


def main() -> None:
    began = time.perf_counter()
    from weightops.errors import WeightopsError

    try:
        print(report(judged(models())))
    except WeightopsError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. What is finished is kept: run it again to go on.")
    print(f"\nThe models are in {OUT}/. This run took {time.perf_counter() - began:.0f} seconds.")


def models() -> dict[str, Path]:
    """The folders of base, guard, target and composed; trained only where something behind them has changed."""
    from weightops.io.gguf import alias_file, dequantised
    from weightops.recipes import data, guard, model, objective, order, prefixes, settings, target, trainer

    say("base", f"{ALIAS}, from the GGUF file in its package")
    base = dequantised(alias_file(ALIAS), ALIAS)

    shared = code(model, objective, order, settings, trainer)
    files = tuple(str(prompt_file(language)) for language in LANGUAGES)
    train = settings.Data(files, only={"split": "train"})
    teach = guard.GuardRecipe(str(base), train, prefix_chars=0, training=settings.Training(**GUARD))
    rows = data.load_rows(train)
    behind = [teach, rows, shared, code(data, guard, prefixes)]
    guarded = once("guard", f"{len(rows)} prompts, about 4 minutes", behind, lambda to: guard.run(teach, to))

    tune = target.TargetRecipe(str(base), training=settings.Training(**TARGET))
    behind = [tune, sys.version, shared, code(target)]
    about = "Python's documentation and library, about 1 minute"
    tuned = once("target", about, behind, lambda to: target.run(tune, to))

    say("composed", f"target + {SCALE:g} x (guard - base)")
    return {"base": base, "guard": guarded, "target": tuned, "composed": compose(guarded, tuned)}


def compose(guard: Path, target: Path) -> Path:
    """Call the command that a user would call."""
    from weightops.errors import WeightopsError

    out = OUT / "composed"
    command = [str(Path(sys.executable).with_name("weightops")), "compose-guard", "--guard", str(guard)]
    command += ["--base", ALIAS, "--target", str(target), "--scale", f"{SCALE:g}", "--out", str(out), "--overwrite"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise WeightopsError(f"{' '.join(command)}: failed: {done.stderr.strip()}")
    return out


def judged(folders: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """The test prompts by model, each with the probability that it is unsafe; kept while model and prompts stay."""
    from weightops.guard import judge, prompt
    from weightops.guard.card import GuardCard

    card = GuardCard.read(folders["guard"])
    rows = [row | {"language": language} for language in LANGUAGES for row in prompts(language, "test")]
    texts = [row["text"] for row in rows]
    found = {}
    for name, folder in folders.items():

        def ask(to: Path, folder: Path = folder) -> None:
            to.mkdir()
            (to / "unsafe.json").write_text(json.dumps(judge.judge(folder, texts, card).tolist()))

        behind = [content(folder / "model.safetensors"), card, texts, code(judge, prompt)]
        answers = json.loads(
            (once(f"judged-{name}", f"{len(texts)} test prompts", behind, ask) / "unsafe.json").read_text()
        )
        found[name] = [row | {"unsafe": answer} for row, answer in zip(rows, answers, strict=True)]
    return found


def report(found: dict[str, list[dict[str, Any]]]) -> str:
    """The table, and what it says about composing."""
    first, *others = LANGUAGES.values()
    lines = [
        "",
        f"{'':10}{first:>8}{'':31}{'':12}" + "".join(f"{language:>9}" for language in others),
        f"{'':10}{'F1':>8}{'precision':>11}{'recall':>8}{'false alarms':>24}" + f"{'F1':>9}" * len(others),
        f"{'':37}{'on safe look-alikes':>24}",
    ]
    for name, rows in found.items():
        english = scores(rows, "en")
        alike = scores([row for row in rows if row["kind"] == "lookalike"], "en").false_alarm_rate
        precision = "-" if english.precision != english.precision else f"{english.precision:.2f}"
        cells = f"{english.f1:8.2f}{precision:>11}{english.recall:8.2f}{alike:24.0%}"
        lines.append(f"{name:10}{cells}" + "".join(f"{scores(rows, other).f1:9.2f}" for other in list(LANGUAGES)[1:]))
    return "\n".join([*lines, "", verdict(found["target"], found["composed"])])


def verdict(target: list[dict[str, Any]], composed: list[dict[str, Any]]) -> str:
    """Whether composing helped, by the gain in English F1 and its 95 % interval over resampled test prompts."""
    import numpy as np

    pairs = [pair for pair in zip(target, composed, strict=True) if pair[0]["language"] == "en"]
    before, after = scores(target, "en").f1, scores(composed, "en").f1
    draws = np.random.default_rng(0).integers(len(pairs), size=(1000, len(pairs)))
    gains = [f1([pairs[i][1] for i in draw]) - f1([pairs[i][0] for i in draw]) for draw in draws]
    low, high = np.percentile(gains, [2.5, 97.5])
    said = f"English F1 {before:.2f} -> {after:.2f}, 95 % interval of the gain {low:+.2f} to {high:+.2f}"
    ranked = f"{auc([a for a, _ in pairs]):.2f} -> {auc([b for _, b in pairs]):.2f}"
    blind = (
        f"At any threshold, the area under its ROC curve: {ranked}. Calling every prompt unsafe would score F1 0.67."
    )
    return f"Composing {'helped' if low > 0 else 'did not help'} the target: {said}.\n{blind}"


def scores(rows: list[dict[str, Any]], language: str) -> Any:
    from weightops.guard.metrics import score

    own = [row for row in rows if row["language"] == language]
    return score([row["label"] == "unsafe" for row in own], [row["unsafe"] for row in own])


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
    from weightops.recipes.data import read_rows

    return [row for row in read_rows(prompt_file(language)) if row["split"] == split]


def prompt_file(language: str) -> Path:
    return HERE / "data" / f"guard_prompts_{language}.jsonl"


def once(name: str, about: str, behind: list[Any], make: Callable[[Path], object]) -> Path:
    """The folder of that name, made anew where the stamp of what is behind it differs; never a half-made one."""
    folder, building = OUT / name, OUT / f".{name}.building"
    stamp = hashlib.sha256(repr(behind).encode()).hexdigest()
    kept = folder / ".stamp"
    if kept.is_file() and kept.read_text() == stamp:
        say(name, "kept from an earlier run")
        return folder
    say(name, about)
    for old in (folder, building):
        shutil.rmtree(old, ignore_errors=True)
    OUT.mkdir(exist_ok=True)
    make(building)
    (building / ".stamp").write_text(stamp)
    building.rename(folder)
    return folder


def code(*modules: Any) -> str:
    return "".join(inspect.getsource(module) for module in modules)


def content(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def say(name: str, about: str) -> None:
    print(f"{name + ':':17} {about}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy machine, threads that spin while they wait cost 5 x
    main()
