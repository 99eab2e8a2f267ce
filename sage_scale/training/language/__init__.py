"""The language model of a run: trimmed to its corpus, or pretrained on it by denoising."""
