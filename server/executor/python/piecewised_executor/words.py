"""Long lists of names, written as text."""


def words(text: str) -> list[str]:
    """The words of `text`."""
    return text.split()
