"""Adapters of networks, such as LoRA's: what a file calls the modules, and what it changes in them."""
