"""The testbed on this machine's container engine: found or installed, pods started by Compose, inspected, removed."""
