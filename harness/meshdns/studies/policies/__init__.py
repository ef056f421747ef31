"""What does passing the sidecar buy: against faults, by policies, mutual TLS and names from outside?"""
