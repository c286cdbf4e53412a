from jaxcalc.scale import cost, large, processes, scaling, sharding

__all__ = ["cost", "large", "processes", "scaling", "sharding"]
