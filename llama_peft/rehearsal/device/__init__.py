"""A GPU that is not there: what the code asks of it, which kernels it has, what they take."""


def replace(owner: object, name: str, stand_in: object) -> None:
    """Put a stand-in in the place of a function of a library, for the whole process.

    Raises AttributeError if the library has no such name any more: the stand-in would do nothing.
    """
    getattr(owner, name)
    setattr(owner, name, stand_in)
