"""
Find a model, or download it once; hold models in use; plan what may be deleted.

Every function takes a catalog.

    from model_catalog.downloads import get_or_download, use_model
"""
