"""What calibration data shows of each layer, and a score for every position of every channel group."""
