"""Comparison of this version of model-catalog with another one, in processes of their own."""
