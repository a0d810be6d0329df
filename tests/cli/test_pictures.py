"""Pictures that commands are given: what is said of one that has another size or other colours than the run takes."""

import numpy as np
import pytest
from PIL import Image

from jaxdiff.cli.pictures import read_picture


def test_a_picture_is_described_as_its_file_is(tmp_path):
    file = tmp_path / "shoe.png"
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(file)
    with pytest.raises(ValueError, match="6 x 4 pixels in grey, and the run takes 8 x 8 pixels in colour"):
        read_picture(file, (8, 8, 3), fit=False)
    assert read_picture(file, (4, 6, 3), fit=False).shape == (4, 6, 3)  # grey is a colour, too
    assert read_picture(file, (8, 8, 3), fit=True).shape == (8, 8, 3)
