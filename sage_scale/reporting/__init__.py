"""What a run has to show: its record read back, figures as SVG, and one self-contained HTML page."""
