"""A table in, an SVG out; then index.html that binds them."""
