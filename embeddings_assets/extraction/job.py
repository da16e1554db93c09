"""What is to be done for a split, as it can be sent to another process."""

from dataclasses import dataclass
from pathlib import Path

from embeddings_assets.extraction.decoding import Decoders
from embeddings_assets.extraction.filling import ShardFiller, StageClock
from embeddings_assets.extraction.planning import ShardPlan, StandingVectors
from embeddings_assets.extraction.report import Progress
from embeddings_assets.extraction.source import EncoderSource
from embeddings_assets.store.manifest import Manifest


@dataclass(frozen=True)
class Job:
    """The shards of a split and how to fill them.

    Attributes:
        width: of the vectors.
        reuse_from: the split that stands, if its vectors can be reused.
        same_images: reuse a vector under the image's own id only (see `StandingVectors`).
        usable_again: manifest rows that have no vector in the split that stands, but can have one now.
        batch_size: images per forward pass; None chooses by the device.
        workers: decoding processes.
    """

    manifest: Manifest
    shards: ShardPlan
    width: int
    reuse_from: Path | None
    same_images: bool
    usable_again: frozenset[int]
    batch_size: int | None
    workers: int

    def filler(
        self, source: EncoderSource, decoders: Decoders, most_bad: int, clock: StageClock, progress: Progress
    ) -> ShardFiller:
        """What fills them in this process."""
        return ShardFiller(
            manifest=self.manifest,
            shards=self.shards,
            width=self.width,
            source=source,
            reusable=(
                StandingVectors(self.reuse_from, same_images=self.same_images) if self.reuse_from else None
            ),
            usable_again=self.usable_again,
            batch_size=self.batch_size,
            workers=self.workers,
            decoders=decoders,
            most_bad=most_bad,
            clock=clock,
            progress=progress,
        )
