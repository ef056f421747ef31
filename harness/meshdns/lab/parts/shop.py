"""An application server that can fail in several ways, by the path that is asked for."""

from meshdns.lab.parts.web import Web


class Shop(Web):
    configuration = "web/shop.conf"


PART = Shop()
