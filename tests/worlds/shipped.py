"""The world that comes with the package, as tests need it."""

from meshdns.lab import world

WORLD = world.shipped()
