"""What one does to a trained adapter: read it, whoever wrote it, and see what is in it."""
