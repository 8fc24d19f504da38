"""Benchmarks: each measures us and a peer side by side, in one run, on one machine."""
