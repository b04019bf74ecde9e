"""From a listing of files to the pictures, classes and persons of one part."""

import re

from privimage_jax.data.labels import by_table, dataset_json, detect, folders
from privimage_jax.data.labels.listing import FOREIGN, Listing, some
from privimage_jax.data.labels.names import Names
from privimage_jax.data.labels.parts import find_parts, find_wrapper, kind_of
from privimage_jax.data.labels.tree import Labelling, Tree
from privimage_jax.data.sources.base import Settings, check_people, numbered_classes
from privimage_jax.errors import UserError


def arrange(listing: Listing, settings: Settings, part: str) -> Tree:
    """The pictures of the asked part, in alphabetical order, with their classes.

    Raises:
      UserError: where there are none, or what they are cannot be told.
    """
    if not listing.pictures:
        raise UserError(f"{listing.where} holds no images; put them in one folder per class.")
    root = find_wrapper(listing, settings)
    labelling = _labelling(listing, root, settings)
    training, held_out = _split(listing, labelling)
    notes = list(labelling.notes)
    if listing.clutter:
        notes.append(f"{some(listing.clutter)} is of the system and is passed over")
    if foreign := [path for path in listing.others if path.lower().endswith(FOREIGN)]:
        notes.append(f"{len(foreign):,} pictures of kinds that are not read, such as {foreign[0]}; convert them")
    divided = bool(training) and any(path in labelling.label_of for path in held_out)
    if held_out and not divided:
        notes.append(f"the held-out part has {len(held_out):,} pictures without a class and is not read")
        held_out = []
    other = (labelling.parts.held_out or "").rstrip("/").rpartition("/")[2]
    if divided and other and kind_of(other) != kind_of(settings.test_split):
        notes.append(f"{other} is held out, as there is no {settings.test_split}")
    chosen = held_out if divided and part == "test" else training
    files = [path for path in chosen if path in labelling.label_of]
    if left_out := len(chosen) - len(files):
        notes.append(_left_out(listing, labelling, chosen, left_out, settings))
    if not files:
        raise UserError(
            f"{listing.where} holds no images of the {part} part; add some or correct {settings.key}.split."
        )
    labelled = {"train": training, "test": held_out} if divided else {}
    counts = {name: sum(path in labelling.label_of for path in paths) for name, paths in labelled.items()}
    labels = [labelling.label_of[path] for path in files]
    people = _people(files, labelling, settings)
    return Tree(files, labels, labelling.class_names, divided, labelling.found, counts, people, tuple(notes))


def _labelling(listing: Listing, root: str, settings: Settings) -> Labelling:
    if settings.labels == "auto":
        return detect.find(listing, root, settings)
    if settings.labels == "folders":
        return folders.read(listing, root, settings)
    if settings.labels == "json":
        return dataset_json.read(listing, root, settings)
    if settings.labels == "none":
        parts = find_parts(listing, root, settings, by_folders=False)
        class_names = numbered_classes(settings, 1, () if settings.class_names else ("all",))
        return Labelling(dict.fromkeys(listing.pictures, 0), class_names, "one class", parts, {}, None, parts.notes)
    names = Names(listing.pictures, root)
    return by_table.read(by_table.choose(listing, root, settings, names), listing, root, settings, names)


def _split(listing: Listing, labelling: Labelling) -> tuple[list[str], list[str]]:
    """The paths of the training and of the held-out part; the latter is empty where the tree does not part them."""
    if labelling.part_of:
        part_of = {path: labelling.part_of.get(path, "train") for path in listing.pictures}  # also one without a row
        return [path for path in part_of if part_of[path] == "train"], [p for p in part_of if part_of[p] == "test"]
    parts = labelling.parts
    training = [path for path in listing.pictures if path.startswith(parts.training)]
    if parts.held_out is None:
        return training, []
    return training, [path for path in listing.pictures if path.startswith(parts.held_out)]


def _left_out(listing: Listing, labelling: Labelling, chosen: list[str], count: int, settings: Settings) -> str:
    """A note on pictures without a class, if the user accepts that."""
    lacking = [path for path in chosen if path not in labelling.label_of]
    unclear = [path for path in lacking if path in labelling.unclear]
    told = len(unclear) or count
    if unclear:
        others = f" and {count - len(unclear):,} have no class" * (count > len(unclear))
        seen = f"share a name with others in {labelling.found}, so that no row is theirs alone{others}"
        remedy = "give more of their paths in the table"
    else:
        seen, remedy = f"have no class in {labelling.found}", "label or remove them"
    first = (unclear or lacking)[0]
    if "unlabelled" not in settings.accept:
        raise UserError(
            f"{listing.where}: {told:,} of {len(chosen):,} pictures {seen}, such as {first}; {remedy}, or "
            f'give {settings.key}.accept=("unlabelled",) to leave them out.'
        )
    return f"{told:,} pictures {seen} and are left out, such as {first}"


def _people(files: list[str], labelling: Labelling, settings: Settings) -> list[str] | None:
    """Whose picture each file is, as `config.data.person` says.

    Raises:
      UserError: where it cannot be told of a file.
    """
    kind, _, value = settings.person.partition(":")
    if not kind:
        return None
    if kind == "column" and labelling.person_of is not None:
        people = [labelling.person_of.get(path, "") for path in files]
    elif kind == "level":
        below = [
            path.removeprefix(labelling.parts.training).removeprefix(labelling.parts.held_out or "") for path in files
        ]
        people = [path.split("/")[int(value) - 1] if path.count("/") >= int(value) else "" for path in below]
    elif kind == "pattern":
        found = [re.search(value, path.rpartition("/")[2]) for path in files]  # a folder tells no person, but a class
        people = [match[1] or "" if match else "" for match in found]
    else:
        raise UserError(
            f"{settings.key}.person={settings.person} does not fit {labelling.found}; give level:N or pattern:REGEX, "
            "or column:NAME with labels from a table."
        )
    check_people(people, files, settings)
    return people
