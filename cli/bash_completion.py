"""Completion in bash, which takes ``KEY=VALUE`` for three words: keys get no space after them, values are completed."""

from __future__ import annotations

from itertools import pairwise

from click.shell_completion import BashComplete, CompletionItem, add_completion_class

_ADDED = "COMPREPLY+=($value)"


@add_completion_class
class AssignmentBashComplete(BashComplete):
    """click's completion for bash, with words joined again around an equals sign."""

    source_template = BashComplete.source_template.replace(
        _ADDED, f"{_ADDED}\n            [[ $value == *= ]] && compopt -o nospace"
    )

    def get_completion_args(self) -> tuple[list[str], str]:
        arguments, incomplete = super().get_completion_args()
        *before, incomplete = joined([*arguments, incomplete])
        option, _, value = incomplete.partition("=")
        typed = value if option.startswith("-") else incomplete
        self._typed = typed[: typed.rfind("=") + 1]  # which bash keeps as it is
        return before, incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{str(item.value).removeprefix(self._typed)}"


def joined(words: list[str]) -> list[str]:
    """The words as they were typed.

    >>> joined(["train", "--set", "training.lr", "=", "1"]), joined(["--set", "training.lr", "="])
    (['train', '--set', 'training.lr=1'], ['--set', 'training.lr='])
    """
    together = words[:1]
    for left, right in pairwise(words):
        if "=" in (left, right):
            together[-1] += right
        else:
            together.append(right)
    return together
