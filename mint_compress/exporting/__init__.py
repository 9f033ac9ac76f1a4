"""Deployable files: written, read back, compared, counted and timed."""
