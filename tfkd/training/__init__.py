"""Parts of a training step: batch, update, accumulation, logs, divergence, statistics."""
