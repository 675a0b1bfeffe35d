"""The tensors that a header lists: their names, byte ranges and parameters."""
