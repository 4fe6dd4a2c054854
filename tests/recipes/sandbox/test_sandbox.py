"""Programs in the sandbox: honest ones pass, and no attack reaches anything outside or outlives its time."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from sandboxes import needs_sandbox

from weightops.errors import WeightopsError
from weightops.recipes.sandbox import sandbox
from weightops.recipes.sandbox.sandbox import run_sandboxed


@needs_sandbox
def test_a_program_that_runs_to_its_end_passes_and_what_it_prints_is_kept():
    ran = run_sandboxed("import math, json\nassert math.gcd(12, 18) == 6\nprint('fine')")
    assert (ran.passed, ran.ended, ran.output) == (True, "passed", "fine\n")


@needs_sandbox
@pytest.mark.parametrize("program", ["assert 1 == 2", "import os; os._exit(0)", "exit()", "raise SystemExit(0)", "1 +"])
def test_a_program_that_does_not_run_to_its_end_fails_whatever_its_exit_code(program):
    assert run_sandboxed(program).ended == "failed"


@needs_sandbox
def test_an_endless_loop_is_stopped_in_time():
    start = time.monotonic()
    assert run_sandboxed("while True: pass", seconds=1).ended == "too slow"
    assert time.monotonic() - start < 20


@needs_sandbox
def test_endless_output_is_stopped():
    assert run_sandboxed("while True: print('x' * 1000)").ended == "too much output"


@needs_sandbox
@pytest.mark.parametrize(
    ("attack", "sign"),
    [
        ("import os\nwhile True: os.fork()", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import threading; threading.Thread(target=print).start()", "RuntimeError"),
        ("bytearray(10 * 2**30)", "MemoryError"),
        ("import mmap; mmap.mmap(-1, 10 * 2**30)", "memory"),
        ("open('/tmp/x', 'wb').write(bytes(2**26))", "OSError"),
        ("for n in range(9): open(f'/tmp/{n}', 'wb').write(bytes(2**22))", "No space left"),
        ("open('/dev/shm/x', 'w')", "No such file"),
        ("import os; os.memfd_create('x')", "PermissionError"),
        ("open('/usr/x', 'w')", "Read-only"),
        ("import os; os.mkdir('/x')", "Read-only"),
        ("open('/etc/passwd')", "No such file"),
        ("open('/proc/1/environ')", "No such file"),
        ("open('/proc/self/mem')", "No such file"),
        ("import os; os.kill(os.getppid(), 9); assert os.getppid() in (0, 1); open('/x')", "No such file"),
        ("import socket; socket.create_connection(('1.1.1.1', 80), 2)", "unreachable"),
        ("import numpy", "ModuleNotFoundError"),
    ],
)
def test_an_attack_ends_in_an_error_of_its_own(attack, sign):
    ran = run_sandboxed(attack, seconds=20)
    assert ran.ended == "failed"
    assert sign in ran.output


@needs_sandbox
def test_a_server_of_this_machine_cannot_be_reached():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ran = run_sandboxed(f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)")
    assert not ran.passed
    assert "refused" in ran.output


@needs_sandbox
def test_the_environment_and_the_files_of_the_caller_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "do not read me")
    secret = tmp_path / "secret"
    secret.write_text("do not read me")
    program = f"import os\nassert 'SECRET' not in os.environ\nassert not os.path.exists({str(secret)!r})"
    assert run_sandboxed(program).passed


@needs_sandbox
def test_other_processes_are_out_of_sight():
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert "ProcessLookupError" in run_sandboxed(f"import os; os.kill({other.pid}, 9)").output
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@needs_sandbox
def test_new_namespaces_and_tracing_are_refused():
    ran = run_sandboxed(
        "import ctypes\nlib = ctypes.CDLL(None, use_errno=True)\n"
        "assert lib.unshare(0x10000000) == -1 and ctypes.get_errno() == 1"
    )
    assert ran.passed, ran.output


def test_a_machine_without_bubblewrap_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    monkeypatch.setattr(sandbox.importlib.util, "find_spec", lambda name: None)
    sandbox._check_works.cache_clear()
    with pytest.raises(WeightopsError, match="install bubblewrap"):
        run_sandboxed("")


def test_a_machine_that_forbids_namespaces_is_told_so(monkeypatch, tmp_path):
    forbidding = tmp_path / "bwrap"
    forbidding.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace'; exit 1\n")
    forbidding.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    sandbox._check_works.cache_clear()
    try:
        with pytest.raises(WeightopsError, match="No permissions to create new namespace"):
            run_sandboxed("")
    finally:
        sandbox._check_works.cache_clear()
