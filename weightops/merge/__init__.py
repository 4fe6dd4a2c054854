"""Merge files: read, checked, and laid out tensor by tensor. See :mod:`.config` and :mod:`.layout`."""
