"""Stage 2: from a still image to a short clip."""
