"""Objects that Python accepts as a number or a path although they are neither."""


class IndexObject:
    """An object with `__index__`, like the integers of numpy."""

    def __init__(self, number):
        self.number = number

    def __index__(self):
        return self.number


class FsPathObject:
    """An object with `__fspath__` that is not a `Path`."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path
