"""The command line: every line of typer and rich. What the commands do is in `pipeline.py` and below."""
