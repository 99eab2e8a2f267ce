"""What Sign2GPT's two stages do: pseudo-glosses found by prototypes, and translation by a frozen language model."""
