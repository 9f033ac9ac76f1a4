"""Data specs, splits and loaders, and the images that calibration draws from them."""
