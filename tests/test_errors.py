"""Errors reach whoever waits for them in another process."""

import copy
import pickle

import pytest

from embeddings_assets import errors
from embeddings_assets.errors import EmbeddingsError, ImageError, Reason


@pytest.mark.parametrize("kind", [EmbeddingsError, *EmbeddingsError.__subclasses__()])
def test_an_error_survives_pickling_and_copying(kind: type[EmbeddingsError]) -> None:
    error = ImageError(Reason.CORRUPT, "x") if kind is ImageError else kind("what", remedy="how")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(again), again.problem, again.remedy) == (kind, error.problem, error.remedy)


def test_an_error_is_sent_as_json_to_another_process() -> None:
    sent = errors.unpacked_error(errors.packed_error(errors.DeviceError("what", remedy="how")))
    assert (type(sent), sent.problem, sent.remedy) == (errors.DeviceError, "what", "how")
