"""What a field needs besides diffusion, of numpy alone: each module is a leaf."""
