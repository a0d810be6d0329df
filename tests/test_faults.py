import errno

import pytest

from jaxdiff import faults


@pytest.mark.parametrize(
    "error, status",
    [
        (ValueError("steps"), 2),
        (FileNotFoundError(errno.ENOENT, "no such file"), 2),
        (faults.NotFinite("loss"), 3),
        (faults.Damaged("step 3"), 4),
        (OSError(errno.ENOSPC, "no space left"), 5),
        (OSError(errno.EROFS, "read-only"), 5),
        (OSError(errno.EDQUOT, "over quota"), 5),
        (OSError(errno.EIO, "broken"), 5),
        (PermissionError(errno.EACCES, "of others"), 2),
    ],
)
def test_status(error, status):
    assert faults.status(error) == status
