"""The explorer: one HTML page in which the model of a run runs live.

page    puts the page together
*.mjs   the JavaScript of the page: the engine mirrors the library, the views show it
*.css   its style
"""

from jaxcalc.explorer.page import Explorer, explore

__all__ = ["Explorer", "explore"]
