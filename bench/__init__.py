"""Benchmarks: each prints a table and writes one JSON row per measurement. Ratios in one run,
medians of several.
"""
