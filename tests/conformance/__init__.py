"""Whether what this project says of Istio is so: its own programs and ours, given the same, differ as is written and no
further. `make conformance` runs every differential against one version and writes a page.
"""
