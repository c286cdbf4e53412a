"""The explorer: one HTML page in which the model of a run runs live, and in which a small one is trained.

live      what the page trains from nothing
timeline  what the page shows of a ledger
page      puts the page together
*.mjs     the JavaScript of the page: the engine mirrors the library, the views show it
*.css     its style
"""

from jaxcalc.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
