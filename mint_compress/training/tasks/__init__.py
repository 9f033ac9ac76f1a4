"""What a network is for: its loss, its metric, and how far two of its outputs are apart."""
