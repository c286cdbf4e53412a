"""jaxcalc teaches a small transformer to calculate in English words, and shows how it learns.

__init__.pyi lists the public names and the modules that they come from. A module is imported when it is first used.
"""

from jaxcalc.lazy import lazy_names

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
