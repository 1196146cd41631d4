"""From three JSON files to an adapter: data, preparation, training, merge, export."""
