"""What attention does, as numbers."""
