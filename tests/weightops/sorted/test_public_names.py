"""What Python users import from weightops.sorted."""

import subprocess
import sys

import pytest

import weightops as wo


def test_decoding_is_reached_by_its_public_names():
    from weightops.sorted import SelfSpeculative, generate

    assert wo.sorted.generate is generate
    assert wo.sorted.SelfSpeculative is SelfSpeculative
    assert all(getattr(wo.sorted, name) for name in wo.sorted.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        wo.sorted.nonsense  # noqa: B018


def test_the_room_is_a_name_of_the_package_without_being_imported():
    script = "import sys, weightops as wo; assert wo.sorted.__all__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
