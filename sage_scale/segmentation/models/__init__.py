"""Segmentation models on keypoints or features, each in one file; `segmentation.tagger.open_tagger` opens them.

Shape letters: T frames, K points, C channels, D width.
"""
