"""What SAGE's two stages do: alignment by CLCL, with its embedding cache, and translation by mBART."""
