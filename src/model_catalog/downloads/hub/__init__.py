"""Download from the Hugging Face hub with huggingface_hub, into its cache."""
