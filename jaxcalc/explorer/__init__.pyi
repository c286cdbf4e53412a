from jaxcalc.explorer.page import Explorer, explore, explore_live

__all__ = ["Explorer", "explore", "explore_live"]
