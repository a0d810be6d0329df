"""A source with broken records."""

import dataclasses
import sys
import threading
from typing import Any

from jaxdiff.data.sources import Dataset
from jaxdiff.messages import listed
from jaxdiff.schema import integer


@dataclasses.dataclass(frozen=True, eq=False)
class Skipping:
    """A source that replaces each broken record by the next readable one.

    The replacement depends only on the data: it is the same in a resumed run, and for any number of hosts and workers.
    Every broken record is reported on stderr, once in each process. Pictures of other sizes are not skipped: a folder
    of several sizes is refused when it is opened, unless they are resized.

    Attributes:
        source: a source whose broken records raise a ValueError.
        most: maximal number of broken records per process.
    """

    source: Dataset
    most: int
    _broken: dict[int, str] = dataclasses.field(default_factory=dict, repr=False)
    _lock: Any = dataclasses.field(default_factory=threading.Lock, repr=False)

    def __post_init__(self):
        integer("most", self.most, 0)

    def __reduce__(self):
        return Skipping, (self.source, self.most)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def captions(self) -> Any:
        return getattr(self.source, "captions", None)

    @property
    def reads_captions(self) -> bool:
        return getattr(self.source, "reads_captions", False)

    @property
    def previews(self) -> Any:
        return getattr(self.source, "previews", None)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a record, or the next readable one; the first record follows the last.

        Raises:
            ValueError: more than `most` records are broken; the message contains their errors.
        """
        for step in range(len(self)):
            at = (index + step) % len(self)
            if at in self._broken:
                continue
            try:
                return self.source[at]
            except ValueError as error:
                self._count(at, str(error))
        raise ValueError(f"none of {len(self)} records can be read: {listed(self._broken.values(), 3, '; ')}")

    def _count(self, at: int, message: str) -> None:
        with self._lock:  # several threads read
            if at not in self._broken:
                self._broken[at] = message
                print(f"record {at} is skipped: {message}", file=sys.stderr)
            if len(self._broken) > self.most:
                raise ValueError(
                    f"{len(self._broken)} records can't be read, and {self.most} may be skipped: "
                    f"{listed(self._broken.values(), 3, '; ')}"
                )
