"""Runs made of other verbs: the demo, and later the ablation grids."""
