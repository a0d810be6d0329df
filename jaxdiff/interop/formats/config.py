"""The fields of another project's config, read one by one, each of its type and in its range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxdiff.interop.formats.fields import FIELDS
from jaxdiff.schema import Kind

__all__ = ["Fields"]

# What does not change the network: where it came from, how it was stored, how it was trained; the second line is
# what diffusers' EMAModel writes into the config of the average that it saves.
NOTES = {
    "architectures", "dtype", "gradient_checkpointing", "model_type", "torch_dtype", "transformers_version",
    "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup",
}  # fmt: skip


class Fields:
    """Reads a config's fields, each of the type and in the range of the schema, and in the end refuses those that were
    not read.

    A field that is not understood may change the function that the network computes: it is an error, and not ignored.

    Args:
        config: the fields by name.
        kind: name of the class, for messages.
        own_schema: what fields of this class may hold, where that differs from the schema.
    """

    def __init__(self, config: Mapping[str, Any], kind: str, own_schema: Mapping[str, Kind] | None = None):
        self._config, self._kind, self._seen = config, kind, set(NOTES)
        self._schema = FIELDS | dict(own_schema or {})

    def take(self, name: str, default: Any) -> Any:
        """The field, or its default in that class; lists come as tuples.

        A flag that is null is off, whatever its default: the reference asks for its truth. Any other null stays None,
        which a class may mean something by.

        Raises:
            ValueError: it is of another type than the schema's, or out of its range.
        """
        self._seen.add(name)
        schema = self._schema[name]
        value = self._config.get(name, default)
        if name in self._config:
            schema.check(f"{self._kind}: {name}", value)
        if value is None and isinstance(default, bool):
            return False
        return tuple(value) if isinstance(value, list) else value

    def only(self, name: str, *allowed: Any) -> Any:
        """The field, which has to be one of the allowed values, of which the first is the default.

        Raises:
            ValueError: it is another.
        """
        self._seen.add(name)
        value = self._config.get(name, allowed[0])
        value = False if value is None and isinstance(allowed[0], bool) else value
        if value not in allowed:
            raise ValueError(f"{self._kind}: {name} must be {' or '.join(map(repr, allowed))}, got {value!r:.80}")
        return allowed[allowed.index(value)]  # 1 where the config says 1.0 or true

    def skip(self, *names: str) -> None:
        """Name fields that don't change what the network computes."""
        self._seen.update(names)

    def done(self) -> None:
        """End the reading.

        Raises:
            ValueError: a field was not read and is neither empty (None, False) nor private.
        """
        rest = {k: v for k, v in self._config.items() if k not in self._seen and not k.startswith("_")}
        unknown = {k: v for k, v in rest.items() if v is not None and v is not False}
        if unknown:
            raise ValueError(f"{self._kind}: fields that are not supported: {unknown!r:.500}")
