"""The command line: one thin file a verb; `main.py` turns errors into one line and an exit code."""
