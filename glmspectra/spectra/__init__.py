"""Numbers from one matrix: value distribution, singular values with an error bound, bulk edge, heavy tail."""
