"""Interception rules of a sidecar: one description, rendered for iptables and nftables, evaluated, applied and removed.

Options say what is asked, the rule set says it in neutral terms, the renderers spell it, `verdict` tells what it does
to a packet, `kernel` puts it into the current network namespace. Standard library only, relative imports only: the
folder also runs on its own in a bare container, as `python3 -m interception`.
"""
