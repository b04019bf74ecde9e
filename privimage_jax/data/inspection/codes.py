"""What `config.*.accept` may name: what would stop a run otherwise."""

FINDINGS = (  # of a look at the sets
    "nearly_black",
    "nearly_white",
    "constant",
    "duplicates_across_parts",
    "people_across_parts",
    "one_image_each",
    "unknown_people",
    "part_folders",
    "one_class",
)
UNLABELLED = "unlabelled"  # pictures without a class, which are then left out while the set is read
OTHER_FILES = "other_files"  # files among the pictures that are none, likewise
ACCEPTABLE = (*FINDINGS, UNLABELLED, OTHER_FILES)
