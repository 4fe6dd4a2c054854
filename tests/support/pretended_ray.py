"""Ray's interface as far as the executor uses it, in one process, with workers that die or never start when told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any


class Death(BaseException):
    """A worker that raises it is dead."""


class Lost(BaseException):
    """A worker that raises it never answers."""


class RayError(Exception):
    """As Ray's."""


class RayTaskError(RayError):
    """As Ray's: what a worker raised is its cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a traceback")
        self.cause = cause


class Reference:
    """The answer of a worker, or the error that it ended with."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.answer, self.error, self.ready = None, None, True
        try:
            self.answer = call()
        except Exception as error:
            self.error = RayTaskError(error)
        except Death:
            self.error = RayError("The worker died unexpectedly. It may have been killed.")
        except Lost:
            self.ready = False


class PretendedRay:
    """A cluster whose workers are objects of this process."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, processors: int) -> None:
        self.processors = processors

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": float(self.processors)}}]

    def remote(self, cls: Callable[..., Any]) -> Any:
        def started(*arguments: Any) -> Any:
            return _Actor(cls(*arguments))

        made = SimpleNamespace(remote=started)
        return SimpleNamespace(options=lambda **options: made)

    def put(self, value: Any) -> Any:
        return value

    def get(self, reference: Any) -> Any:
        if isinstance(reference, list):
            return [self.get(each) for each in reference]
        if reference.error is not None:
            raise reference.error
        return reference.answer

    def wait(self, references: Sequence[Reference], *, num_returns: int = 1, timeout: float) -> tuple[list, list]:
        return [each for each in references if each.ready], [each for each in references if not each.ready]

    def kill(self, actor: Any) -> None:
        pass


class _Actor:
    def __init__(self, server: Any) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._server, name)
        return SimpleNamespace(remote=lambda *arguments: Reference(lambda: method(*arguments)))
