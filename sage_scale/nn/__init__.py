"""Building blocks that models share: frame encoder, BatchNorm over ranks, keyed dropout, chunks, files of weights.

Shape letters: B clips, N segments (visual tokens) of all clips, F stored frames, C channels, D width, K kernel,
H and W image sides.
"""
