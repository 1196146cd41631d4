"""The tidy tables under param_matrix/ and their manifest: atomic, resumable."""
