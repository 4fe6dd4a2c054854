"""The table of the deployment says whose texts differ, and counts what was accepted."""

from __future__ import annotations

from examples.experiments.deploy.__main__ import table


def run(texts: list[str], version: str, **more: int) -> dict[str, object]:
    return {"texts": texts, "tokens": 20, "seconds": 2.0, "version": version, **more}


def test_texts_are_compared_with_transformers_and_with_the_server_without_drafts():
    plain = run(["a", "b"], "server 1", drafted=0, accepted=0)
    drafted = run(["a", "c"], "server 1", drafted=8, accepted=2)
    results = {
        ("transformers", "parent"): run(["a ", "c"], "transformers 1"),
        ("vLLM", "parent"): plain,
        ("vLLM", "parent, child drafts"): drafted,
    }
    assert table(results).splitlines()[2:] == [
        "| transformers 1 | parent | 10.0 | - | - | - |",
        "| server 1 | parent | 10.0 | - | 1 of 2 | - |",
        "| server 1 | parent, child drafts | 10.0 | 25% of 8 | 2 of 2 | 1 of 2 |",
    ]
