"""Keypoints from the pictures of a video: extractors, MediaPipe's process and environment, tracks of whole videos."""
