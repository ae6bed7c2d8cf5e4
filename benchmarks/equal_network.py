"""The network of `remap.network`, its losses and its optimiser in PyTorch, which `bench_training` compares with."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from remap.network.losses import LossSettings
from remap.network.resnet import ModelSettings
from remap.sampling.augment import Batch


def set_threads(count: int) -> None:
    """So many threads for everything that follows."""
    torch.set_num_threads(count)


def same_padding(length: int, width: int, stride: int) -> tuple[int, int]:
    """Pixels before and after a spectrum, as JAX's "SAME" has them."""
    total = max((-(-length // stride) - 1) * stride + width - length, 0)
    return total // 2, total - total // 2


class Conv(nn.Conv1d):
    """Without a bias, with that padding."""

    def __init__(self, channels: int, filters: int, width: int, stride: int = 1) -> None:
        super().__init__(channels, filters, width, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """float[S, C, N] -> float[S, F, ceil(N / stride)]."""
        before, after = same_padding(x.shape[-1], self.kernel_size[0], self.stride[0])
        if before != after:
            x, before = functional.pad(x, (before, after)), 0
        return functional.conv1d(x, self.weight, None, self.stride, before)


def make_activation(name: str) -> Callable[[Tensor], Tensor]:
    """ "mish" or "relu"."""
    return {"mish": functional.mish, "relu": functional.relu}[name]


class Module(nn.Module):
    """A residual module of either type."""

    def __init__(self, settings: ModelSettings, channels: int, filters: int) -> None:
        super().__init__()
        project = channels != filters
        stride, past = 1 + project, 1 - settings.batch_norm_momentum
        self.activation = make_activation(settings.activation)
        self.conv1 = Conv(channels, filters, settings.kernel, stride)
        self.norm1 = nn.BatchNorm1d(filters, momentum=past)
        self.dropout = nn.Dropout(settings.dropout)
        self.conv2 = Conv(filters, filters, settings.kernel)
        self.norm2 = nn.BatchNorm1d(filters, momentum=past)
        self.shortcut = Conv(channels, filters, 1, stride) if project else None
        self.shortcut_norm = nn.BatchNorm1d(filters, momentum=past) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """float[S, C, N] -> float[S, F, N or half of it]."""
        y = self.dropout(self.activation(self.norm1(self.conv1(x))))
        y = self.norm2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return self.activation(x + y)


class Network(nn.Module):
    """All of it; the heads are products of stacked matrices."""

    def __init__(self, settings: ModelSettings, variables: Mapping[str, Any]) -> None:
        super().__init__()
        if (settings.pooling, settings.validity_channel, settings.temperature) != ("avg_max", True, True):
            raise ValueError(f"avg_max, validity channel and temperature are written here, found {settings}")
        if settings.place_filters:
            raise ValueError(f"places beside the pools are not written here, found {settings}")
        past = 1 - settings.batch_norm_momentum
        self.activation = make_activation(settings.activation)
        self.stem = Conv(2, settings.stem_filters, settings.stem_kernel, settings.stem_stride)
        self.stem_norm = nn.BatchNorm1d(settings.stem_filters, momentum=past)
        widths = (settings.stem_filters, *settings.filters)
        for i, (channels, filters) in enumerate(itertools.pairwise(widths)):
            self.add_module(f"module_{i}", Module(settings, channels, filters))
        self.depth = len(settings.filters)
        heads = variables["params"]["heads"]
        for layer in ("embedding", "logits"):
            self.register_parameter(f"{layer}_kernel", _parameter(heads[layer]["kernel"]))
            self.register_parameter(f"{layer}_bias", _parameter(heads[layer]["bias"]))
        self.log_temperature = _parameter(heads["log_temperature"])
        with torch.no_grad():
            for own, _, value in self.places(variables["params"]):
                own.copy_(_to_torch(value))
            for module in self.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.reset_running_stats()

    def places(self, params: Mapping[str, Any]) -> Iterator[tuple[nn.Parameter, tuple[str, ...], Any]]:
        """Every parameter of the trunk, its path in ours, and ours."""
        for path, value in jax.tree_util.tree_flatten_with_path(params)[0]:
            *parents, name = (part.key for part in path)
            if parents[0] != "heads":
                own = {"kernel": "weight", "scale": "weight"}.get(name, name)
                yield getattr(self.get_submodule(".".join(parents)), own), (*parents, name), value

    def forward(self, flux: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """float[S, N], bool[S, N] -> logits float[L, S, K] and embeddings float[L, S, E]; no pixel is masked."""
        x = torch.stack([flux - 1.0, valid.to(flux.dtype)], dim=1)
        x = self.activation(self.stem_norm(self.stem(x)))
        for i in range(self.depth):
            x = self.get_submodule(f"module_{i}")(x)
        features = torch.cat([x.mean(dim=-1), x.amax(dim=-1)], dim=-1)
        each = features.expand(len(self.log_temperature), -1, -1)
        embedding = torch.baddbmm(self.embedding_bias[:, None], each, self.embedding_kernel)
        logits = torch.baddbmm(self.logits_bias[:, None], each, self.logits_kernel)
        return logits * torch.exp(-self.log_temperature)[:, None, None], functional.normalize(
            embedding, dim=-1
        )


def _to_torch(value: Any) -> Tensor:
    """A kernel [width, channels, filters] as PyTorch has it; everything else as it is."""
    value = np.array(value)
    return torch.from_numpy(np.ascontiguousarray(value.transpose(2, 1, 0)) if value.ndim == 3 else value)


def _parameter(value: Any) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.array(value)))


def multitask_loss(
    logits: Tensor, embedding: Tensor, target: Tensor, classes: Tensor, mask: Tensor, settings: LossSettings
) -> Tensor:
    """`remap.network.losses.multitask_loss`, of labels that are all known; mask bool[L, K] has the real bins."""
    padded = ~mask[:, None]
    log_p = functional.log_softmax(logits.masked_fill(padded, -torch.inf), dim=-1).masked_fill(padded, 0.0)
    p = torch.exp(log_p)
    focal = -(target * (1 - p) ** settings.gamma * log_p).sum(dim=-1).mean(dim=-1)
    cost = (1 - (target * p).sum(dim=-1)).mean(dim=-1)
    triplet = torch.stack([_triplet(e, c, settings.margin) for e, c in zip(embedding, classes, strict=True)])
    return (focal + settings.cost_weight * cost + settings.triplet_weight * triplet).sum()


def _triplet(embedding: Tensor, classes: Tensor, margin: float) -> Tensor:
    square = (embedding**2).sum(dim=1)
    d2 = square[:, None] + square[None] - 2 * embedding @ embedding.T
    positive = d2 > 1e-12
    distance = torch.where(positive, torch.sqrt(torch.where(positive, d2, 1.0)), 0.0)
    same = classes[:, None] == classes[None]
    other = same & ~torch.eye(len(classes), dtype=torch.bool)
    usable = other.any(dim=1) & (~same).any(dim=1)
    far = distance.masked_fill(~other, -torch.inf).amax(dim=1)
    near = distance.masked_fill(same, torch.inf).amin(dim=1)
    gap = torch.where(usable, far, 0.0) - torch.where(usable, near, 0.0) + margin
    return torch.where(usable, functional.relu(gap), 0.0).sum() / usable.sum().clamp(min=1)


class Look(NamedTuple):
    """What a pass forward and back gives; gradients in a tree like our parameters."""

    logits: np.ndarray
    loss: float
    gradients: Any


class Training:
    """Steps on one batch, with Adam and the limit on the gradient's norm; mask bool[L, K] has the real bins."""

    def __init__(
        self,
        settings: ModelSettings,
        loss: LossSettings,
        mask: np.ndarray,
        variables: Mapping[str, Any],
        batch: Batch,
    ) -> None:
        self.network = Network(settings, variables).train()
        self.params = variables["params"]
        self.loss = loss
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3, eps=1e-8)
        self.batch = [torch.from_numpy(np.array(x)) for x in batch]
        self.mask = torch.from_numpy(mask)

    def backward(self) -> tuple[Tensor, Tensor]:
        """Logits and loss, with the gradients in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        flux, valid, target, classes = self.batch
        logits, embedding = self.network(flux, valid)
        loss = multitask_loss(logits, embedding, target, classes, self.mask, self.loss)
        loss.backward()
        return logits, loss

    def step(self) -> None:
        """One step."""
        self.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()

    def look(self) -> Look:
        """A pass that changes nothing but the running statistics."""
        logits, loss = self.backward()
        gradients = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), self.params)
        for own, (*parents, name), _ in self.network.places(self.params):
            found = own.grad.numpy()
            owner = functools.reduce(lambda tree, parent: tree[parent], parents, gradients)
            owner[name] = found.transpose(2, 1, 0) if found.ndim == 3 else found
        for layer in ("embedding", "logits"):
            for part in ("kernel", "bias"):
                gradients["heads"][layer][part] = getattr(self.network, f"{layer}_{part}").grad.numpy()
        gradients["heads"]["log_temperature"] = self.network.log_temperature.grad.numpy()
        return Look(logits.detach().numpy(), float(loss.detach()), gradients)


def prediction(
    settings: ModelSettings,
    mask: np.ndarray,
    variables: Mapping[str, Any],
    flux: np.ndarray,
    valid: np.ndarray,
) -> Callable[[], Tensor]:
    """PMFs of spectra, with the running statistics."""
    network = Network(settings, variables).eval()
    given = torch.from_numpy(flux), torch.from_numpy(valid)
    padded = ~torch.from_numpy(mask)[:, None]

    def run() -> Tensor:
        with torch.inference_mode():
            return functional.softmax(network(*given)[0].masked_fill(padded, -torch.inf), dim=-1)

    return run
