"""Keypoint tracks: points of a signer by name, frame by frame; their files, cleaning and features."""
