"""Chooses what to merge, and with which coefficients, by a held-out score; never trains, and judges without writing."""
