"""Monitors the ranks of a run: finds silent, dead and hung ranks, and reports why the run ends in one line."""
