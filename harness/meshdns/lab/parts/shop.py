"""An application server that can fail in several ways, by the path that is asked for."""

from __future__ import annotations

from meshdns.lab.parts.web import Web


class Shop(Web):
    """See the module."""

    configuration = "web/shop.conf"


PART = Shop()
