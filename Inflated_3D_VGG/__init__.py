"""Stage 4: the baseline inflated to 3-D and trained on clips."""
