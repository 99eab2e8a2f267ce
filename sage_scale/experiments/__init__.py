"""Sequences of the other commands: the demo."""
