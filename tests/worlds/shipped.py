"""The world that comes with the package, as tests need it."""

from meshdns.core.world import Nets
from meshdns.lab import parts, world

WORLD = world.shipped()


def mesh() -> dict[str, str]:
    """What our own control plane is told of it: file -> YAML."""
    [plane] = parts.of(WORLD, Nets(), WORLD.named("control-plane"))
    return plane.part.files(plane)
