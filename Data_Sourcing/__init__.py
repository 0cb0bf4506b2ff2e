"""Stage 1: from a raw data set to a filtered image set with an index."""
