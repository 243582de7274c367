"""Reference: the training loop that an experienced PyTorch user would write.

A dataset that opens each image with PIL and augments it with torchvision's transforms, a DataLoader
with workers, a network in float32 with layers in the order of the architecture (convolution, BatchNorm,
ReLU, dropout, pooling), AdamW with a one-cycle learning rate, and validation after each epoch.
Architecture, initial weights, rows and their order are the same as ours.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from space_warps.data.augment import Augment
from space_warps.data.dataset import Space_Galaxi
from space_warps.data.loaders import EpochSampler
from space_warps.models.model import ProgressiveModel
from space_warps.training.config import TrainConfig


class PlainDataset(Dataset[tuple[Tensor, int, Tensor]]):
    """One image from disk at a time."""

    def __init__(self, data: Space_Galaxi, augment: Augment | None) -> None:
        channels, height, width = data.image_shape
        self.paths = data.catalogue.paths
        self.labels = data.labels.tolist()
        self.features = data.features
        self.mode = "L" if channels == 1 else "RGB"
        steps: list[nn.Module] = [
            v2.ToImage(),
            v2.Resize((height, width), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
        ]
        if augment is not None:
            steps += [
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.RandomChoice([v2.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)]),
                # takes half the time of RandomAffine, and treats the border as ours does
                v2.RandomCrop((height, width), augment.shift, padding_mode="reflect"),
            ]
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        with Image.open(self.paths[index]) as image:
            pixels = self.transform(image.convert(self.mode))
        return pixels, self.labels[index], self.features[index]


class PlainBlocks(nn.Module):
    """Layers in the order of the architecture: pooling last."""

    def __init__(self, block: nn.Sequential) -> None:
        super().__init__()
        self.layers = nn.Sequential(*block)

    def forward(self, maps: Tensor) -> Tensor:
        return self.layers(maps)  # type: ignore[no-any-return]


class ReferenceLoop:
    """Trains and validates a network, one epoch at a time."""

    def __init__(
        self,
        model: ProgressiveModel,
        loaders: tuple[DataLoader[Any], DataLoader[Any]],
        plan: TrainConfig,
        workers: int = 2,
        device: str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        model.blocks = nn.ModuleList(PlainBlocks(block) for block in model.blocks)  # type: ignore
        self.model = model.to(self.device)
        self.plan, self.epoch = plan, 0
        train, val = loaders
        self.sampler = EpochSampler(len(train.dataset), train.sampler.seed)  # type: ignore
        options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
        if workers and sys.platform == "linux":
            options["multiprocessing_context"] = "fork"  # even in a spawned process
        on_gpu = self.device.type == "cuda"
        self.train_loader = DataLoader(
            PlainDataset(train.dataset, train.dataset.transform),  # type: ignore
            train.batch_size,
            sampler=self.sampler,
            drop_last=train.drop_last,
            pin_memory=on_gpu,
            **options,
        )
        self.val_loader = DataLoader(
            PlainDataset(val.dataset, None),  # type: ignore
            train.batch_size,
            pin_memory=on_gpu,
            **options,
        )
        self.train_loader.dataset[
            0
        ]  # torchvision imports much on first use: do it once, not in each worker
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), plan.lr, weight_decay=plan.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, plan.lr, total_steps=10**6, cycle_momentum=False
        )

    def run_epoch(self) -> float:
        """Train one epoch; returns the validation accuracy."""
        self.sampler.epoch = self.epoch
        self.epoch += 1
        for batch in self.train_loader:
            self.take_step(batch)
        num_correct = sum(self.count_correct(batch) for batch in self.val_loader)
        return num_correct / len(self.val_loader.dataset)  # type: ignore[arg-type]

    def take_step(self, batch: Any) -> float:
        """Train on a batch; returns its mean loss."""
        self.model.train()
        images, labels, features = (part.to(self.device) for part in batch)
        loss = functional.cross_entropy(
            self.model(images, features), labels, label_smoothing=self.plan.label_smoothing
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def count_correct(self, batch: Any) -> int:
        """Number of correct predictions in a batch."""
        self.model.eval()
        images, labels, features = (part.to(self.device) for part in batch)
        with torch.no_grad():
            predicted = self.model(images, features).argmax(dim=1)
        return int((predicted == labels).sum().item())


def as_colour(source: Path, into: Path, num_rows: int, side: int) -> Path:
    """Write a catalogue of resized colour images from the first rows of a grey one."""
    (into / "images").mkdir(parents=True)
    lines = (source / "annotations.csv").read_text(encoding="utf-8").splitlines()[: num_rows + 1]
    for line in lines[1:]:
        name = line.split(",")[0]
        with Image.open(source / f"images/{name}.jpg") as image:
            image.convert("RGB").resize((side, side)).save(into / f"images/{name}.jpg", quality=90)
    (into / "annotations.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return into
