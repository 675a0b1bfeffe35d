"""The hooks `on_call` and `on_change` of a catalog: what they are told, and who tells them."""
