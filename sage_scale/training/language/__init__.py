"""The language model of a run: trimmed to its corpus, or made from it by denoising."""
