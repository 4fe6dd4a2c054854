"""``python -m weightops``: the command line."""

from __future__ import annotations

from weightops.cli import main

if __name__ == "__main__":
    main(prog_name="weightops")
