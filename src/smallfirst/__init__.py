"""smallfirst: a gateway that answers an agent's model calls with a small model first, and proves each saving."""

__version__ = "0.1.0"
