"""What is not native runs through the mergekit package, as it is there."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from ..errors import WeightopsError
from ..io.staging import exists_already
from .config.reading import ELSEWHERE


def run_mergekit(config: Path, out: Path, *, seed: int = 0, overwrite: bool = False) -> None:
    """Run a file through ``mergekit-yaml``, or ``mergekit-moe`` where it is one for that.

    Raises:
        WeightopsError: mergekit is not installed, the output exists, or the run failed.
    """
    if importlib.util.find_spec("mergekit") is None:
        raise WeightopsError("mergekit: the package is not installed; pip install 'weightops[mergekit]'")
    if out.exists() and not overwrite:
        raise WeightopsError(exists_already(out))
    module = "mergekit.scripts.moe" if _is_moe(config) else "mergekit.scripts.run_yaml"
    beside = out.parent / f".{out.name}.mergekit"
    shutil.rmtree(beside, ignore_errors=True)
    command = [sys.executable, "-m", module, str(config), str(beside), "--random-seed", str(seed)]
    done = subprocess.run(command, check=False)
    if done.returncode:
        shutil.rmtree(beside, ignore_errors=True)
        raise WeightopsError(f"{config}: mergekit ended with code {done.returncode}; its message stands above")
    if out.exists():
        shutil.rmtree(out)
    beside.rename(out)


def _is_moe(config: Path) -> bool:
    """Whether a file has keys that only mergekit-moe reads."""
    keys = {key for key, tool in ELSEWHERE.items() if tool == "mergekit-moe"}
    try:
        lines = config.read_text("utf-8").splitlines()
    except OSError as error:
        raise WeightopsError(f"{config}: cannot be read ({error.strerror})") from error
    return any(line.split(":")[0] in keys for line in lines)
