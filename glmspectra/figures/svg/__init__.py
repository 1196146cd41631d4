"""Figures for papers: SVG files drawn by matplotlib and seaborn, written when `--svg` asks for them.

Nothing of the pages needs this package, so that a command that draws none does not wait for matplotlib.
"""
