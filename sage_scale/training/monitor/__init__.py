"""Watching over the ranks of a run: who is silent, dead or stuck, why the run ends, and one line that says so."""
