"""From three JSON files to an adapter: settings, data, model, training, memory, inference."""
