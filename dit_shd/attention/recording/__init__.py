"""Recording what the attention layers of any model did, without changing what they do."""
