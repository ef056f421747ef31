"""Which regular expressions the proxy takes."""

from __future__ import annotations

import pytest

from meshdns.istio import expressions


@pytest.mark.parametrize(
    "text",
    ["", "/a/[0-9]+", "(?i)abc", "(?P<name>a|b)?", r"\d{2,1000}", r"(\w{10}){100}", "[]^a]", "[^]a]", r"[\]\-x]",
     "(?s:.)(?-i:a)", r"\x41\101\0", "a{,3}", "[[:alpha:]]+", "a*?b+?c??", r"\.\_\/", "{", "a{b}"],
)  # fmt: skip
def test_what_both_know_is_taken(text: str) -> None:
    assert expressions.refusal(text) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(", "is not a regular expression"), ("a**", "is not a regular expression"),
        ("a(?=b)", "the group (?="), ("a(?!b)", "the group (?!"), ("(?<=a)b", "the group (?<"),
        ("(?<!a)b", "the group"),
        ("(?>a)", "the group (?>"), ("(?#x)a", "the group (?#"), ("(?x)a", "the group (?x"), ("(?a:b)", "the group"),
        ("(a)(?(1)b|c)", "the group (?("), ("(?P<n>a)(?P=n)", "the group (?P"),
        (r"(a)\1", r"the back-reference \1"), (r"a\Z", r"an escape \Z"), (r"\u0041", r"an escape \u"),
        (r"[\b]", r"in a set the escape \b"), (r"\é", r"an escape \é"), ("a*+", "possessive"), ("a{2}+", "possessive"),
        ("a{1001}", "more than 1000"), ("(a{100}){11}", "more than 1000"), ("((a{10}|b){11}c){10}", "more than 1000"),
    ],
)  # fmt: skip
def test_what_the_proxy_does_not_know_is_refused(text: str, said: str) -> None:
    assert said in expressions.refusal(text)
