"""Opens a model folder and yields one named tensor at a time, never the model."""
