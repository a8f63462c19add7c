"""What one does to a trained adapter: read, inspect, and later merge and export it."""
