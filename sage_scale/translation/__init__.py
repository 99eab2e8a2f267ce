"""Translates signing videos, and draws the segments of a video."""
