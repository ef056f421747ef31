"""Istio's answers for a world, as they were recorded, for its sidecars: a server of aggregated discovery (ADS).

It has an image of its own, and imports nothing of ours.
"""
