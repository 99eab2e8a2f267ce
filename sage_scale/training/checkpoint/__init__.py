"""Checkpoints: their format, saving in the background, and which run may resume from which."""
