"""Larger models, and the same training on other devices.

large      other ways to compute what `jaxcalc.apply` does: recomputed, scanned, in bfloat16
sharding   one step on many devices
processes  one step on the devices of several processes
cost       bytes, operations and seconds of a step, before it runs
scaling    bytes that devices exchange per step, and the seconds that follow
"""

from jaxcalc.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
