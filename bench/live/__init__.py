"""The embedded models live on BFCL, as `bench/bfcl.py` runs them.

recorded.py   answers kept as they come; the same cascade goes over them again without a model
asking.py     the questions, the models as stages, and the asking
tables.py     models and constraint modes, features of confidence
cascades.py   fitting on some questions, deciding others; the ablation
"""
