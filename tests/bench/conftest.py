"""The benchmarks run as ``python -m tests.bench``; pytest sees only the test of them."""

collect_ignore = [
    "__main__.py",
    "child.py",
    "compose.py",
    "measure.py",
    "models.py",
    "report.py",
    "sparse.py",
    "sparse_child.py",
]
