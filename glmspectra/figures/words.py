"""Numbers as people read them."""

import math

import numpy as np

from glmspectra.store.columns import Column

MINUS = "\N{MINUS SIGN}"


def number(value: float | int | None, digits: int = 3) -> str:
    """A number with so many significant digits and a true minus; nothing for what is missing."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if float(value) == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", MINUS)
    if 10 ** (digits + 1) <= abs(value) < 1e6:  # no more digits than were measured
        value = float(f"{value:.{digits}g}")
    if 10 ** (digits - 1) <= abs(value) < 1e6:
        return f"{value:,.0f}".replace("-", MINUS)
    return f"{value:.{digits}g}".replace("-", MINUS)


def signed(value: float, digits: int = 4) -> str:
    """A difference: always with its sign, to so many decimals."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def percent(share: float, digits: int = 3) -> str:
    """A share in percent."""
    return f"{number(100 * share, digits)} %"


def measured(value: float, described: Column, digits: int = 3) -> str:
    """A value of a column: a share in percent, else a number."""
    return percent(value, digits) if described.share else number(value, digits)
