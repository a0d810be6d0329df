"""Lists of names in messages."""

from jaxdiff.messages import listed, shared_prefix


def test_twenty_names_their_number_and_their_prefix():
    names = [f"_orig_mod.block.{i}.weight" for i in range(21)]
    assert listed(names[:20]) == ", ".join(names[:20]) and listed([]) == ""
    assert listed(iter(names)) == ", ".join(names[:20]) + " and 1 more (21 in all, each begins with '_orig_mod.block.')"
    assert listed([*names, "other"]) == ", ".join(names[:20]) + " and 2 more (22 in all)"
    assert listed("abc", between="\n") == "a\nb\nc"
    assert listed("abc", 2) == "a, b and 1 more (3 in all)"


def test_a_prefix_ends_at_a_dot():
    assert shared_prefix(["module.conv1.weight", "module.conv2.weight"]) == "module."
    assert shared_prefix(["conv1.weight", "conv2.weight"]) == shared_prefix(["a.b"]) == shared_prefix([]) == ""


def test_a_name_that_is_long_or_speaks_to_the_terminal():
    assert listed(["x" * 1000]) == "x" * 300 + "..."
    assert listed(["a\x1b[2Jb\n", "ü"]) == "a\ufffd[2Jb\ufffd, ü"
