"""Frames in, frames out: every number that a notebook shows is computed here.

`cells` turns samples into one value per cell and cells into intervals over blocks; `lookups`, `requests` and `card`
hold the tables of one notebook each (the card's lines come from `ruler` and `consistency`), `provenance` what was
measured and whether it may be used, `text` how numbers print.
"""
