"""Images that cannot be read: each is a `UnreadableImage`, and all of a set are told in one sentence."""

from collections.abc import Sequence

from privimage_jax.errors import UserError

REPAIR = "remove or repair {them}"
SHOWN = 10  # are told with their causes; of the others the number


class UnreadableImage(UserError):
    """One image that cannot be read, while those beside it may be.

    Args:
      name: of the image.
      fault: what is wrong with it; completes "it …".
      remedy: what to do, with {them} in place of the image or images.
    """

    def __init__(self, name: str, fault: str, remedy: str = REPAIR):
        super().__init__(f"{name} is not a readable image: it {fault}; {remedy.format(them='it')}.")
        self.name, self.fault, self.remedy = name, fault, remedy


class UnreadableImages(UserError):
    """All images of one or more sets that cannot be read.

    Args:
      errors: the first of them, at least one.
      count: how many there are.
      n: number of images looked at.
    """

    def __init__(self, errors: Sequence[UnreadableImage], count: int, n: int):
        super().__init__(str(errors[0]) if count == 1 else _sentence(errors, count, n))
        self.errors, self.count, self.n = errors, count, n


def of_sets(found: Sequence[UnreadableImages]) -> UnreadableImages:
    """Those of several sets, at least one, as one error."""
    errors = [error for each in found for error in each.errors]
    return UnreadableImages(errors, sum(each.count for each in found), sum(each.n for each in found))


def _sentence(errors: Sequence[UnreadableImage], count: int, n: int) -> str:
    told = ", ".join(f"{error.name} {error.fault}" for error in errors[:SHOWN])
    more = f", and {count - SHOWN:,} more" if count > SHOWN else ""
    remedies = dict.fromkeys(error.remedy.format(them="them") for error in errors[:SHOWN])
    return f"{count:,} of {n:,} images are not readable: {told}{more}; {', or '.join(remedies)}."
