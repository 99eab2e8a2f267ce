"""A signing video in, a sentence out, and a picture of how the video was cut."""
