"""Check the status of model files against the catalog."""
