"""What comes after training: evaluation, generation, conversation."""
