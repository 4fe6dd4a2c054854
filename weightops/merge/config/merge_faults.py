"""The problems of a merge file, and notes on what in it has no effect."""

from __future__ import annotations

from ...errors import at
from ...io.faults import Faults


class MergeFaults(Faults):
    """Problems, and what the file says without effect: mergekit ignores that silently, here it is a note.

    Args:
        where: Name of the file, as messages show it before the line number.
        strict: What has no effect is a problem too.
    """

    def __init__(self, where: str, *, strict: bool = False) -> None:
        super().__init__(where)
        self.strict = strict
        self._notes: dict[tuple[int, str], None] = {}

    def ignored(self, line: int, what: str) -> None:
        (self.add if self.strict else self.note)(line, what)

    def note(self, line: int, what: str) -> None:
        """Note something that the user should know although it is no fault."""
        self._notes[(line, what)] = None

    def take_notes(self) -> tuple[str, ...]:
        """The notes since the last call, sorted by line, each as ``place: note``."""
        notes = tuple(at(self.place(line), what) for line, what in sorted(self._notes))
        self._notes.clear()
        return notes
