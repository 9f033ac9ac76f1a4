"""Scores and a budget make a plan."""
