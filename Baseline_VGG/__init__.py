"""Stage 3: the 2-D VGG-11 baseline."""
