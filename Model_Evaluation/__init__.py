"""Stage 5: from checkpoints to tables and figures."""
