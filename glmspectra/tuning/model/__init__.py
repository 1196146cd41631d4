"""The model that is trained: loading, precision, 4-bit bases, adapters and their targets."""
