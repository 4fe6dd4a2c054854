"""What is not native runs through the mergekit package, as it is there."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ..errors import WeightopsError
from ..io.output_lock import OutputLock
from ..io.replacing import check_place, private_folder, put_in_place, recover
from ..io.small_files import read_small
from .config.reading import ELSEWHERE


def run_mergekit(
    config: Path, out: Path, *, seed: int = 0, overwrite: bool = False, trust_remote_code: bool = False
) -> None:
    """Run a file through ``mergekit-yaml``, or ``mergekit-moe`` where it is one for that.

    Modules that lie in the current folder are not run, and nothing can be asked on a terminal.

    Args:
        trust_remote_code: Let mergekit run the Python code in the folders of models, where their files ask for it.

    Raises:
        WeightopsError: mergekit is not installed, the output exists or is being written, or the run failed.
    """
    if importlib.util.find_spec("mergekit") is None:
        raise WeightopsError("mergekit: the package is not installed; pip install 'weightops[mergekit]'")
    check_place(out, overwrite=overwrite)
    module = "mergekit.scripts.moe" if _is_moe(config) else "mergekit.scripts.run_yaml"
    options = ["--random-seed", str(seed), *(["--trust-remote-code"] if trust_remote_code else [])]
    home = out.absolute().parent / f".{out.name}.mergekit"
    with OutputLock(out):
        private_folder(home)
        recover(out, home / "displaced")
        try:
            _run(config, module, home / "model", options)
            put_in_place(home / "model", out, home / "displaced", overwrite=overwrite)
        finally:
            shutil.rmtree(home, ignore_errors=True)


def _run(config: Path, module: str, to: Path, options: list[str]) -> None:
    shutil.rmtree(to, ignore_errors=True)  # of a run that was killed
    command = [sys.executable, "-m", module, str(config.absolute()), str(to), *options]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, env=_environment())
    if done.returncode:
        raise WeightopsError(f"{config}: mergekit ended with code {done.returncode}; its message is above")
    if not to.is_dir():
        raise WeightopsError(f"{config}: mergekit wrote nothing; its message is above")


def _environment() -> dict[str, str]:
    """The user's environment, with module search paths that do not depend on the current folder.

    Relative entries of ``PYTHONPATH``, an empty one among them, stand for the current folder or lie in it; they are
    left out. Python's isolated mode would also leave out packages that a user has installed for himself.
    """
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = os.pathsep.join(entry for entry in entries if os.path.isabs(entry))
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": absolute}


def _is_moe(config: Path) -> bool:
    """Whether a file has keys that only mergekit-moe reads."""
    keys = {key for key, tool in ELSEWHERE.items() if tool == "mergekit-moe"}
    try:
        lines = read_small(config).decode("utf-8").splitlines()
    except OSError as error:
        raise WeightopsError(f"{config}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise WeightopsError(f"{config}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    return any(line.split(":")[0] in keys for line in lines)
