"""A service of one inference host: it downloads models and starts workers with them."""
