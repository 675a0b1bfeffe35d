"""Verify signatures of models, in the bundle format of OpenSSF model-signing."""
