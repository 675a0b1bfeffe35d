"""Whether a model is whole: the evidence, the judge, and the files that loading needs."""
