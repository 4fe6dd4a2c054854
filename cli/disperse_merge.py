"""``weightops disperse-merge``: the short form of ``weightops train disperse-then-merge``, with the same options."""

from __future__ import annotations

from functools import partial

import click

from weightops.cli.train import command as train

HELP = """Disperse rows into parts, train a sub-model on each, and merge them.

The same as `weightops train disperse-then-merge`. An interrupted run resumes when the same command is run again, and a
part that is already trained is not trained again. Run a recipe of your own with `weightops train`.

\b
weightops disperse-merge --set data.files=rows.jsonl --out merged
weightops disperse-merge --set data.files=rows.jsonl --set disperse.parts=8 --out merged
"""

command = click.Command(
    "disperse-merge",
    params=[parameter for parameter in train.params if parameter.name != "recipe"],
    callback=partial(train.callback, recipe="disperse-then-merge") if train.callback else None,
    help=HELP,
)
