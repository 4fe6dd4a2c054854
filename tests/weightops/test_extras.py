"""Packages of extras."""

from __future__ import annotations

import pytest

from weightops.errors import WeightopsError
from weightops.extras import needed


def test_a_missing_package_says_which_extra():
    with pytest.raises(WeightopsError, match=r"nothing: not installed; pip install 'weightops\[train\]'"):
        needed("no_such_module_here", "nothing", "train")
