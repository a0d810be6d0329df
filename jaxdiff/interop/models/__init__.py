"""Models of other projects: networks from configs, and the names of their tensors."""
