"""What training steps are made of: batches, logs, updates, preparation, statistics."""
