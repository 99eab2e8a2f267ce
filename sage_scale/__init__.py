"""sage_scale: gloss-free sign language translation at scale."""
