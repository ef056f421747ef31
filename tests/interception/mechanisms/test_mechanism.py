"""What every way to capture says of itself holds together."""

import re

import pytest

from meshdns.interception import mechanisms
from meshdns.interception.conventions import ISTIO
from meshdns.interception.mechanisms import RULES
from meshdns.interception.options import Options


@pytest.mark.parametrize("name", mechanisms.ALL)
def test_what_is_rendered_is_loaded(name: str) -> None:
    each = mechanisms.ALL[name]
    files = each.files(Options.of(**ISTIO.injected(), redirect_dns=True, **each.options()))
    loaded = set(re.findall(rf"{RULES}/([\w.-]+)", "\n".join(each.load(files))))
    assert loaded == (set() if each.programs else set(files))


@pytest.mark.parametrize("name", mechanisms.ALL)
def test_so_many_rules_come_before_the_others_and_are_gone_again(name: str) -> None:
    some, none = (mechanisms.ALL[name].extra_rules(count) for count in (7, 0))
    assert sum(command.given.count("192.0.2.1") for command in some) == 7
    assert not any("192.0.2.1" in command.given for command in none)
    assert [command.argv for command in some] == [command.argv for command in none]
