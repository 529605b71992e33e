"""The only module that Feast loads: every object of the dataset that the configuration names.

Which dataset: the ``dataset.toml`` beside the file that ``FEAST_FS_YAML_FILE_PATH`` names, else
the description that ``FEASTRANK_DATASET`` names, else MovieLens-100k.
"""

from feature_repo.definitions.repository import objects

for _object in objects():
    globals()[f"{type(_object).__name__}_{_object.name}"] = _object
