"""Operations, memory and time of models and training steps."""
