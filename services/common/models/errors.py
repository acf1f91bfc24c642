"""What can go wrong with a model.

    ModelError
    ├── ModelNotFound      nothing of that name: no such directory, file or repository
    ├── ModelUnavailable   it exists, but it could not be fetched or stored
    ├── ModelDamaged       it is here, but what it holds cannot be read or fails its checksum
    └── ModelUnsupported   it is whole, but of a kind that Headrace cannot convert

Every message is one line that says what is wrong and what to change.
"""


class ModelError(Exception):
    """The root: catch this one to tell the user in one line."""


class ModelNotFound(ModelError):
    """Nothing of that name: no such directory, file or repository."""


class ModelUnavailable(ModelError):
    """The model exists, but it could not be fetched or stored."""


class ModelDamaged(ModelError):
    """The model is here, but what it holds cannot be read or fails its checksum."""


class ModelUnsupported(ModelError):
    """The model is whole, but of a kind that Headrace cannot convert."""
