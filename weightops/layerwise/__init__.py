"""Runs a causal language model part by part, so that only one part's weights are in memory."""
