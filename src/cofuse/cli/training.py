"""Whether what trains and runs models is installed."""

from __future__ import annotations

from ..errors import StudyError


def needs_training() -> None:
    """Refuse to begin what needs the training stack, before anything else is done.

    Raises:
        StudyError: it is not installed.
    """
    try:
        import sklearn  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise StudyError(
            "the training stack is not installed", got=f"no {error.name}", hint='pip install "cofuse[train,report]"'
        ) from None
