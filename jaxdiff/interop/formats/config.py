"""The fields of another project's config, read one by one, each of its type and in its range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxdiff.interop.formats.fields import FIELDS
from jaxdiff.schema import Kind

__all__ = ["Fields"]

# Fields that do not change the network: its origin, storage and training. The second line are fields that diffusers'
# EMAModel adds to the config of a saved average.
NOTES = {
    "architectures", "dtype", "gradient_checkpointing", "model_type", "torch_dtype", "transformers_version",
    "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup",
}  # fmt: skip


class Fields:
    """The fields of a config, checked against the schema when read; fields that were not read are an error.

    An unknown field may change the function that the network computes, so it is not ignored.

    Args:
        config: the fields by name.
        kind: name of the class, for messages.
        own_schema: entries that replace those of the schema for this class.
    """

    def __init__(self, config: Mapping[str, Any], kind: str, own_schema: Mapping[str, Kind] | None = None):
        self._config, self.kind, self._seen = config, kind, set(NOTES)
        self._schema = FIELDS | dict(own_schema or {})

    def get(self, name: str, default: Any) -> Any:
        """Return a field, or its default in the class; lists become tuples.

        A null flag is False, whatever its default, since the reference only tests its truth. Any other null is None,
        which may have a meaning for the class.

        Raises:
            ValueError: the value is not allowed by the schema.
        """
        self._seen.add(name)
        schema = self._schema[name]
        value = self._config.get(name, default)
        if name in self._config:
            schema.check(f"{self.kind}: {name}", value)
        if value is None and isinstance(default, bool):
            return False
        return tuple(value) if isinstance(value, list) else value

    def expect(self, name: str, *allowed: Any) -> Any:
        """Return a field that must have one of the allowed values, the first of which is the default.

        Raises:
            ValueError: the field has another value.
        """
        self._seen.add(name)
        value = self._config.get(name, allowed[0])
        value = False if value is None and isinstance(allowed[0], bool) else value
        if value not in allowed:
            raise ValueError(f"{self.kind}: {name} must be {' or '.join(map(repr, allowed))}, got {value!r:.80}")
        return allowed[allowed.index(value)]  # 1 where the config says 1.0 or true

    def ignore(self, *names: str) -> None:
        """Ignore fields that don't change what the network computes."""
        self._seen.update(names)

    def check_all_read(self) -> None:
        """Check that every field was read.

        Raises:
            ValueError: a field was not read and is neither empty (None, False) nor private.
        """
        rest = {k: v for k, v in self._config.items() if k not in self._seen and not k.startswith("_")}
        unknown = {k: v for k, v in rest.items() if v is not None and v is not False}
        if unknown:
            raise ValueError(f"{self.kind}: fields that are not supported: {unknown!r:.500}")
