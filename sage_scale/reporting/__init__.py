"""Reports of runs: the record of a run folder, figures as SVG, self-contained HTML pages."""
