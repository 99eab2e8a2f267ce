"""Monitors of a run's ranks: which rank is silent, dead or hung, why the run ends, and one line that says so."""
