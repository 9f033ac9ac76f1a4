"""What a run has come to so far, kept beside its output, so that an interrupted one goes on."""
