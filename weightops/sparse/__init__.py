"""Sparse deltas: some entries of some tensors of a base, in a small file that is added, merged and reverted exactly.

:mod:`weightops.io.sparse_delta` describes the format and reads it; this room writes it and computes with it. A trainer
writes what it learned like this::

    from weightops.io.sparse_delta import FILE, DeltaMetadata
    from weightops.sparse.delta_file import entries_of, write_delta

    stored = weightops.open("org/base").source.tensors
    entries = (entries_of(stored[name], positions, values, originals) for name, positions, ... in learned)
    write_delta(folder / FILE, entries, DeltaMetadata("add", base="org/base", made={"recipe": ...}))

``positions`` are flat, in C order, sorted, each once (int32 or int64). ``values`` has as many elements, of any float
dtype with ``add``; with ``replace`` they are the new entries themselves, in the base's dtype. ``originals`` are the
base's entries, in its dtype; with them the delta can be reverted. Shape, dtype and content digest come from the stored
tensor of the base. A folder that holds ``delta.safetensors`` is named like the file: ``BASE+FOLDER``.
"""
