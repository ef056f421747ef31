"""What the testbed is made of: pods, services and addresses; each pod's rules, its sidecar's bootstrap, its names."""
