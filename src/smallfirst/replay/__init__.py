"""Recorded outcomes of real models, decided over by the real router, cascade, calibrator and guarantee.

calls.py      the file: requests with the answers of several models
models.py     those answers as backends, with prices
policies.py   what a way of deciding came to, call by call; the simple ways to compare with
run.py        the splits: fit on some calls, decide the others
tables.py     what is printed
"""
