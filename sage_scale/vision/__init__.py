"""From videos, folders of pictures and keypoints to frames and features at one frame rate."""
