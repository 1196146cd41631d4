"""How tensors lie in files, one module a format."""
