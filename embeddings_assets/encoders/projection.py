"""The fixed 768 x 512 map that brings a 768-wide vector to the contract width.

No published checkpoint of Franca or SigLIP 2 gives 512 dimensions. The map is data-free: orthonormal columns
spanning a uniformly random subspace. Cosines keep their value up to an error of standard deviation about
sqrt(1/512 - 1/768) = 0.026. It is shipped as a file, because a QR decomposition differs in its last bits
between LAPACK builds, and pinned by digest.
"""

import hashlib
import io
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embeddings_assets.errors import WeightsError

PROJECTION_NAME = "orthonormal-768x512-v1"
PROJECTION_SHA256 = "3f1f073ec46065b2a81208b8b98de46bd32fb71a8920f628277c432dbdee1058"
PROJECTION_SHAPE = (768, 512)
PROJECTION_PATH = Path(__file__).with_name("projection_768x512.npy")

_SEED = 20_240_512  # arbitrary, fixed for version 1


def make_projection() -> npt.NDArray[np.float32]:
    """The routine that made the shipped file: float32 [768, 512], columns orthonormal to 1e-6.

    Standard normals from Philox, by Box-Muller in float64 from its raw 64-bit words (whose stream numpy
    guarantees), then QR with the signs fixed so that R has a positive diagonal.
    """
    rows, columns = PROJECTION_SHAPE
    words = np.random.Philox(key=_SEED).random_raw(2 * rows * columns)
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    radius = np.sqrt(-2.0 * np.log(uniform[: rows * columns]))
    normal = radius * np.cos(2.0 * np.pi * uniform[rows * columns :])
    q, r = np.linalg.qr(normal.reshape(rows, columns))
    return (q * np.sign(np.diagonal(r))).astype(np.float32)


@cache
def load_projection(path: Path = PROJECTION_PATH) -> npt.NDArray[np.float32]:
    """The pinned projection, float32 [768, 512], read-only.

    Raises:
        WeightsError: the file is absent or its content is not the pinned one.
    """
    remedy = "reinstall the package: pip install --force-reinstall embeddings-assets"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path.name}: the projection matrix cannot be read ({error.strerror}).", remedy=remedy
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != PROJECTION_SHA256:
        raise WeightsError(
            f"{path.name}: the projection matrix has sha256 {found}, expected {PROJECTION_SHA256}.",
            remedy=remedy,
        )
    matrix: npt.NDArray[np.float32] = np.load(io.BytesIO(content), allow_pickle=False)
    matrix.setflags(write=False)
    return matrix
