"""Files of other projects: tensors, their keys, and the fields of configs; no model is known here."""
