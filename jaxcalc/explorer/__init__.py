"""The explorer: a page in which a run's model runs live, and the JavaScript that it is made of."""

from jaxcalc.explorer.page import Explorer, explore

__all__ = ["Explorer", "explore"]
