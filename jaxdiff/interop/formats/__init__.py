"""Files of other projects: tensors, their keys, and the fields of configs, independent of models."""
