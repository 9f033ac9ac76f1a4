"""The command: click options made from the settings, the terminal, and one exit status for every failure."""
