"""What is asked for each position of the data order."""

from collections.abc import Sequence
from dataclasses import dataclass

from scene_data.dataset import SceneDataset
from scene_data.messages import box_space, image_messages
from scene_data.sampler import EpochSampler, group_id
from services.images import ImageStore
from services.schemas.common import ImageRef, Sampling
from services.schemas.prompts import PromptGroup
from services.settings import Settings
from services.waiting import RoomWait
from trainer.collection.group_pool import GroupSource
from trainer.collection.image_check import ImageCheck


@dataclass
class PromptSource:
    """Makes prompts from the dataset; puts each image where the samplers find it."""

    settings: Settings
    dataset: SceneDataset
    images: ImageStore
    """Shared with the rollout servers."""
    incarnation: int
    """The number of this start of the trainer."""
    suppressed_token_ids: Sequence[int]
    """Never to be sampled."""
    image_check: ImageCheck | None = None
    """Without it images are not looked into."""

    def __post_init__(self) -> None:
        self._room = RoomWait(self.settings.run.files.images, self.settings.trainer.wait_timeout_s)
        self._order = EpochSampler(len(self.dataset), self.settings.run.seed)

    def group_id(self, position: int) -> str:
        """The name of a position's group."""
        epoch, index = self._order.at(position)
        return group_id(self.settings.run.name, epoch, index)

    def read(self, position: int) -> GroupSource:
        """The row of a position.

        Raises:
            InvalidInputError: Its image cannot be used.
            TooLargeError: The same.
        """
        sample = self.dataset[self._order.at(position)[1]]
        return GroupSource(
            sample=sample,
            box_space=box_space(self.settings.model, sample),
            num_image_tokens=(
                self.image_check.num_tokens(sample.image_bytes) if self.image_check else None
            ),
        )

    def prompt(self, position: int, source: GroupSource, policy_version: int) -> PromptGroup:
        """The prompt of a position.

        Args:
            position: In the endless sequence of epochs.
            source: What `read` gave for the position.
            policy_version: A server with older weights catches up before it samples.
        """
        epoch, index = self._order.at(position)
        run, sampling = self.settings.run, self.settings.sampling
        return PromptGroup(
            group_id=self.group_id(position),
            incarnation=self.incarnation,
            epoch=epoch,
            index=index,
            messages=image_messages(self.settings.data, source.box_space),
            images=[self._put(source)],
            sampling=Sampling(
                n=self.settings.trainer.group_size,
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
                # Another seed for each position: the same prompt of another epoch is sampled anew.
                seed=(run.seed * 1_000_003 + position) % (1 << 31),
                suppress_token_ids=list(self.suppressed_token_ids),
            ),
            min_policy_version=policy_version,
        )

    def restore_image(self, prompt: PromptGroup, source: GroupSource) -> None:
        """Put the image of a prompt into the store again, where it is gone or torn."""
        if not all(map(self.images.has, prompt.images)):
            self._put(source)

    def _put(self, source: GroupSource) -> ImageRef:
        """Into the store, once there is room."""
        return self._room.write(lambda: self.images.put(source.sample.image_bytes))
