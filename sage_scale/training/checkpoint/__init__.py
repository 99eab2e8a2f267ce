"""Checkpoints: their format, writing them while training goes on, and which run may go on from which."""
