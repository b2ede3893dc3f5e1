"""Ours beside others on one machine, in one run, with equal weights, inputs and outputs."""
