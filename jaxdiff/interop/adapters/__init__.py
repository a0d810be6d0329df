"""Adapters of networks, e.g. LoRA: the names of modules in a file, and the changes of their kernels."""
