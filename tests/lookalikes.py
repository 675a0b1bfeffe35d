"""Objects that may stand for a number or a path without being one."""


class Whole:
    """An integer of somebody else's, as numpy has them."""

    def __init__(self, number):
        self.number = number

    def __index__(self):
        return self.number


class Located:
    """A path of somebody else's."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path
