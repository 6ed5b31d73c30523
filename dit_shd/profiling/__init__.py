"""What models and training steps take: operations, memory, time."""
