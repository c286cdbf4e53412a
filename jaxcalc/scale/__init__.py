"""Larger models, and the same training on other devices.

large      other ways to compute what `jaxcalc.apply` does: in parts, in a loop, in bfloat16
sharding   one step on many devices
processes  one step on the devices of several processes
cost       bytes, products and seconds of a step, before it is taken
scaling    bytes that devices exchange in a step, and the seconds that follow
"""

from jaxcalc.scale import cost, large, processes, scaling, sharding

__all__ = ["cost", "large", "processes", "scaling", "sharding"]
