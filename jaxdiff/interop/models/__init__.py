"""Other projects' models: the network that a config describes, and the names of its tensors."""
