"""A teacher that has what a run may have beside its network."""

from pathlib import Path

import pytest
from helpers import tiny_parts
from helpers.untrained import untrained


@pytest.fixture(scope="package")
def parts(tmp_path_factory):
    """Of random parameters, so that each word and each level has its own answer."""
    folder = tmp_path_factory.mktemp("parts") / "run"
    untrained(folder, Path(tiny_parts.__file__), noise=0.5)
    return folder
