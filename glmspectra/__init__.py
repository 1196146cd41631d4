"""Measures the weights of ChatGLM2-6B and trains it by what it measured.

Kept light on purpose: `glmspectra --help` must not wait for torch. The packages are listed in the README.
"""

__version__ = "0.1.0"
